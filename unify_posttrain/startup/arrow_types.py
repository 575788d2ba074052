"""Types of Arrow that say the same in several ways, made one: files of different writers are then files of one kind."""

from __future__ import annotations

import pyarrow as pa


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type with text as `string` and lists as `list`, at any depth; what stands for values of another type is that type.

    >>> plain_type(pa.large_list(pa.struct([("content", pa.large_string())])))
    ListType(list<item: struct<content: string>>)
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        item = kind.value_field
        return pa.list_(item.with_type(plain_type(item.type)))
    return kind
