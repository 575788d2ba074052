// Responses beside their verdicts. Text reaches the page through textContent alone.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("verdict-browser");
  const said = (row, judge) => {
    const verdict = row.verdicts[judge];
    return !verdict || verdict[0] === "masked" ? null : verdict[0] === "right";
  };
  const differ = (row, one, other) => said(row, one) !== null && said(row, other) !== null && said(row, one) !== said(row, other);
  const pairs = data.judges.flatMap((one, index) => data.judges.slice(index + 1).map((other) => [one, other]));
  const fault = (row) => Object.values(row.verdicts).some(([state]) => !["right", "wrong", "no answer", "masked"].includes(state));
  const filters = [
    ["all rows", () => true],
    ["any two differ", (row) => pairs.some(([one, other]) => differ(row, one, other))],
    ["a grader failed", fault],
    ["the ground truth is masked", (row) => Object.values(row.verdicts).some(([state]) => state === "masked")],
  ];
  if (data.rows.some((row) => row.expected !== null)) {
    filters.splice(1, 0, [`${data.main}: false accepts`, (row) => row.expected === false && said(row, data.main) === true]);
    filters.splice(2, 0, [`${data.main}: false rejects`, (row) => row.expected === true && said(row, data.main) !== true]);
  }
  for (const [one, other] of pairs) {
    const count = data.rows.filter((row) => differ(row, one, other)).length;
    if (count) filters.push([`${one} and ${other} differ`, (row) => differ(row, one, other)]);
  }
  const counts = filters.map(([, fits]) => data.rows.filter(fits).length);
  const select = make(
    "select",
    { id: "verdict-filter" },
    filters.map(([name], index) => make("option", { value: index }, `${name} (${counts[index]})`)),
  );
  const search = make("input", { type: "search", placeholder: "text, ground truth or family" });
  const count = make("span", { role: "status" });
  const list = make("ul", { class: "prompts", "aria-label": "responses" });
  const detail = make("div", { class: "detail" });

  const marks = (row) =>
    data.judges.filter((judge) => row.verdicts[judge]).map((judge) => `${judge} ${{ right: "✓", masked: "·" }[row.verdicts[judge][0]] ?? "✗"}`);

  function show(row) {
    const cells = (judge) => {
      const [state, answer, seconds] = row.verdicts[judge];
      return make("tr", {}, make("th", { scope: "row" }, judge), make("td", {}, state), make("td", {}, answer), make("td", {}, `${(1000 * seconds).toFixed(1)} ms`));
    };
    const head = make("tr", {}, ["version", "verdict", "answer", "time"].map((name) => make("th", { scope: "col" }, name)));
    const facts = [`row ${row.place}`];
    if (row.version !== null) facts.push(`version ${row.version}`);
    if (row.family) facts.push(row.family);
    if (row.expected !== null) facts.push(`expected ${row.expected ? "right" : "wrong"}`);
    detail.replaceChildren(
      make("p", {}, facts.join(" · ")),
      make("div", { class: "card" }, make("h4", {}, "Ground truth"), make("div", { class: "text-block" }, row.gold)),
      make("div", { class: "card" }, make("h4", {}, "Response"), make("div", { class: "text-block", tabindex: 0 }, row.response)),
      make("div", { class: "scroll" }, make("table", { class: "settings" }, make("thead", {}, head), make("tbody", {}, data.judges.filter((judge) => row.verdicts[judge]).map(cells)))),
    );
  }

  function draw() {
    const wanted = search.value.trim().toLowerCase();
    const fits = filters[select.selectedIndex][1];
    const rows = data.rows.filter((row) => fits(row) && (!wanted || `${row.response}\n${row.gold}\n${row.family}`.toLowerCase().includes(wanted)));
    list.replaceChildren();
    detail.replaceChildren();
    for (const row of rows) {
      const button = make(
        "button",
        { type: "button" },
        make("span", { class: "text" }, `${row.place}: ${row.gold}`),
        make("span", { class: "what" }, marks(row).join("  ")),
      );
      button.addEventListener("click", () => {
        list.querySelectorAll("button").forEach((other) => other.setAttribute("aria-current", other === button));
        show(row);
      });
      list.append(make("li", {}, button));
    }
    count.textContent = `${rows.length} of ${data.rows.length} rows`;
    list.querySelector("button")?.click();
  }

  select.selectedIndex = Math.max(0, counts.findIndex((number, index) => index > 0 && number > 0));
  select.addEventListener("change", draw);
  search.addEventListener("input", draw);
  root.replaceChildren(make("div", { class: "tools" }, make("label", {}, "show ", select), make("label", {}, "search ", search), count), list, detail);
  draw();
  document.documentElement.dataset.drawn = "true";
})();
