// Puts everything together.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  PICTURES = data.pictures ?? [];
  const hidden = new Set();
  const drawAll = () => data.charts.forEach((chart) => drawChart(chart, hidden));
  drawAll();
  let timer,
    width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(timer);
    timer = setTimeout(drawAll, 150);
  });
  document.querySelectorAll("[data-run]").forEach((button) =>
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      if (!hidden.delete(run)) hidden.add(run);
      button.setAttribute("aria-pressed", !hidden.has(run));
      drawAll();
    }),
  );
  const browsers = { rollouts: rolloutBrowser, validation: validationBrowser, evaluations: evaluationBrowser };
  document.querySelectorAll("[data-browser]").forEach((root) => browsers[root.dataset.browser](root, data));
  filterSettings();
  document.documentElement.dataset.drawn = "true";
})();

function filterSettings() {
  const search = document.getElementById("setting-search");
  if (!search) return;
  const only = document.getElementById("only-differing");
  const table = search.closest("section").querySelector("table");
  const rows = [...search.closest("section").querySelectorAll("tbody tr")].map((row) => [row, row.textContent.toLowerCase()]);
  const apply = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    table.classList.toggle("only", Boolean(only?.checked && !wanted));
    for (const [row, text] of rows) {
      row.hidden = !text.includes(wanted) || Boolean(only?.checked && !wanted && !row.classList.contains("differs"));
      count += !row.hidden;
    }
    document.getElementById("setting-count").textContent = `${count} of ${rows.length} settings`;
  };
  search.addEventListener("input", apply);
  only?.addEventListener("change", apply);
  apply();
}
