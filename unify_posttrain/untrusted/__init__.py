"""What was written by others: which files of a folder are read, JSON, code that a model brings, and weights.

Every command reads such files. What is looked at, and what is refused, is decided here once for all of them. Nothing in this
package imports torch when it is imported: the start-up checks and the doctor use it.
"""
