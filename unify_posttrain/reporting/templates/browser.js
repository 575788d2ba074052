// Two browsers: rollouts beside demonstrations, and answers to validation prompts.
const KIND_NAMES = {
  on: "sampled by the policy",
  demo: "demonstration, trained",
  hint: "given as a hint",
  untrained: "not trained",
};
let PICTURES = []; // data URIs, which segments and prompts name by their place

function chooser(label, options, selected, choose) {
  const select = make(
    "select",
    {},
    options.map((text, index) => make("option", { value: index }, text)),
  );
  select.selectedIndex = selected;
  const step = (by) => {
    select.selectedIndex += by;
    change();
  };
  const back = make("button", { type: "button", "aria-label": `previous ${label}` }, "◀");
  const next = make("button", { type: "button", "aria-label": `next ${label}` }, "▶");
  const update = () => {
    back.disabled = select.selectedIndex <= 0;
    next.disabled = select.selectedIndex >= options.length - 1;
  };
  const change = () => {
    update();
    choose(select.selectedIndex);
  };
  select.addEventListener("change", change);
  back.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  update();
  return make("span", {}, make("label", {}, `${label} `, select), " ", back, " ", next);
}

// A list of prompts; arrow keys move in it.
// Where they all begin alike, as instructions do, what follows is shown.
function promptList(prompts, describe, choose) {
  const shared = sharedBeginning(prompts.map((prompt) => prompt.prompt));
  const list = make("ul", { class: "prompts", "aria-label": "prompts" });
  const pick = (index) => {
    list.querySelectorAll("button").forEach((button, number) => button.setAttribute("aria-current", number === index));
    choose(prompts[index]);
  };
  prompts.forEach((prompt, index) => {
    const { colour, what } = describe(prompt);
    const button = make(
      "button",
      { type: "button", class: colour },
      make("span", { class: "text" }, shared ? `…${prompt.prompt.slice(shared)}` : prompt.prompt.trim() || "(empty prompt)"),
      make("span", { class: "what" }, what),
    );
    button.addEventListener("click", () => pick(index));
    list.append(make("li", {}, button));
  });
  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...list.querySelectorAll("button")];
    const goal = buttons.indexOf(document.activeElement) + by;
    if (!by || goal < 0 || goal >= buttons.length) return;
    event.preventDefault();
    buttons[goal].focus();
    pick(goal);
  });
  if (prompts.length) pick(0);
  return list;
}

// Characters that several texts share at their beginning, up to a blank; 0 if it is less than a line.
function sharedBeginning(texts) {
  if (texts.length < 2) return 0;
  let length = 0;
  while (length < texts[0].length && texts.every((text) => text[length] === texts[0][length])) length++;
  const cut = texts[0].slice(0, length).search(/\s\S*$/) + 1;
  return cut < 40 ? 0 : cut;
}

function question(prompt) {
  const gold = prompt.gold === null ? null : make("p", {}, "ground truth: ", make("b", {}, prompt.gold));
  const pictures = (prompt.pictures ?? []).map(pictureFigure);
  return make(
    "div",
    { class: "card" },
    make("h4", {}, "Prompt"),
    pictures.length ? make("div", { class: "pictures" }, pictures) : null,
    make("div", { class: "text-block" }, prompt.prompt),
    gold,
  );
}

// A picture with the boxes of what was enlarged next, or why it is not here. A click shows it in its full size.
function pictureFigure(shown) {
  const caption = make("figcaption", {}, shown.caption);
  const uri = shown.picture === null ? undefined : PICTURES[shown.picture];
  if (uri === undefined) return make("figure", { class: "picture absent" }, caption, make("p", {}, shown.note ?? "No picture."));
  const boxes = shown.boxes.map(([left, top, right, bottom]) => {
    const box = make("span", { class: "box", title: "enlarged next" });
    box.style.left = `${100 * left}%`;
    box.style.top = `${100 * top}%`;
    box.style.width = `${100 * (right - left)}%`;
    box.style.height = `${100 * (bottom - top)}%`;
    return box;
  });
  const button = make(
    "button",
    { type: "button", class: "frame", "aria-label": `${shown.caption}: change its size`, "aria-pressed": "false" },
    make("img", { src: uri, alt: shown.caption }),
    boxes,
  );
  const figure = make("figure", { class: "picture" }, button, caption);
  button.addEventListener("click", () => button.setAttribute("aria-pressed", figure.classList.toggle("large")));
  return figure;
}

function rolloutBrowser(root, data) {
  const runs = data.rollouts.map((steps, run) => ({ steps, run })).filter((entry) => entry.steps.length);
  const most = Math.max(
    1e-9,
    ...runs
      .flatMap((entry) => entry.steps)
      .flatMap((step) => step.prompts)
      .flatMap((prompt) => prompt.rollouts)
      .flatMap(segmentsOf)
      .map((segment) => Math.abs(segment[3] ?? 0)),
  );
  let entry = runs[0],
    mode = "kinds";
  const draw = (number = 0) => {
    const tools = make("div", { class: "tools" });
    if (runs.length > 1)
      tools.append(
        chooser(
          "run",
          runs.map((one) => data.runs[one.run]),
          runs.indexOf(entry),
          (index) => {
            entry = runs[index];
            draw();
          },
        ),
      );
    tools.append(
      chooser(
        "step",
        entry.steps.map((step) => String(step.step)),
        number,
        (index) => draw(index),
      ),
    );
    const colours = make(
      "select",
      {},
      make("option", { value: "kinds" }, "what a token is"),
      make("option", { value: "advantages" }, "its advantage"),
    );
    colours.value = mode;
    const key = make("span", { class: "legend" });
    const detail = make("div", { class: `detail ${mode}` });
    colours.addEventListener("change", () => {
      mode = colours.value;
      detail.className = `detail ${mode}`;
      key.replaceChildren(...colourKey(mode, most));
      paint(detail, most, mode);
    });
    key.append(...colourKey(mode, most));
    tools.append(make("label", {}, "colour by ", colours), key);
    const list = promptList(
      entry.steps[number].prompts,
      (prompt) => summary(prompt, data.zones),
      (prompt) => {
        detail.replaceChildren(...rolloutDetail(prompt, data.zones));
        paint(detail, most, mode);
      },
    );
    root.replaceChildren(tools, list, detail);
  };
  draw();
}

function summary(prompt, zones) {
  const solved = prompt.solved === null ? "" : `${prompt.solved}${prompt.of ? "/" + prompt.of : ""} solved`;
  const trained = !prompt.zone ? "" : prompt.zone === "skipped" ? zones.skipped : `trained ${zones[prompt.zone]}`;
  return { colour: prompt.zone ? `colour-zone-${prompt.zone}` : null, what: [solved, trained].filter(Boolean).join(" · ") };
}

function rolloutDetail(prompt, zones) {
  const dropped = !prompt.rollouts.length && prompt.demonstrations.length > 0;
  const solved = prompt.solved === null ? "" : `, ${prompt.solved} of them solved`;
  const replaced = `The gate put the demonstration in the place of its ${prompt.of ?? ""} rollouts${solved}.`;
  const note = dropped ? `${replaced} Rollouts that are not trained are not in the dump.` : "No rollouts.";
  const hidden = prompt.hidden ? ` (${prompt.hidden} more not shown)` : "";
  const left = make(
    "div",
    { class: "column" },
    make("h4", {}, `Rollouts: ${prompt.rollouts.length}${hidden}`),
    prompt.rollouts.length ? make("div", { class: "stack" }, prompt.rollouts.map(card)) : make("p", { class: "advice" }, note),
  );
  const right = make(
    "div",
    { class: "column" },
    make("h4", {}, "Demonstration"),
    prompt.demonstrations.length ? prompt.demonstrations.map(card) : make("p", { class: "advice" }, "None in the dump."),
  );
  const what = summary(prompt, zones).what;
  return [question(prompt), make("p", {}, what), make("div", { class: "pair" }, left, right)];
}

function card(row) {
  const facts = [];
  if (row.score !== null && row.score !== undefined) facts.push(`reward ${plain(row.score)}`);
  if (row.advantage !== null && row.advantage !== undefined) facts.push(`advantage ${plain(row.advantage)}`);
  for (const [name, value] of Object.entries(row.weights ?? {}))
    if (value) facts.push(`${name.replace("_weight", "")} weight ${plain(value)}`);
  for (const [name, value] of Object.entries(row.fields ?? {})) facts.push(`${name} ${value}`);
  const kind = row.kind === "demonstration" || row.kind === "not trained" ? "demonstration" : row.score > 0 ? "right" : "wrong";
  return make(
    "article",
    { class: `card ${kind}` },
    make("p", {}, [row.kind === "rollout" ? null : row.kind, ...facts].filter(Boolean).join(" · ")),
    row.turns ? row.turns.map(turnParts) : textBlock(row.segments),
  );
}

function segmentsOf(row) {
  return row.turns ? row.turns.flatMap((turn) => turn.segments) : row.segments;
}

// A turn of an episode: verdict and reward, then the answer with the feedback behind it.
function turnParts(turn, index) {
  const reward = turn.reward === null ? null : `reward ${plain(turn.reward)}`;
  const verdict = turn.solved ? "✓ right" : turn.verdict || "✗ wrong"; // a search is neither
  const said = [`turn ${index + 1}`, verdict, reward].filter(Boolean).join(" · ");
  const kind = turn.solved ? "right" : turn.verdict && !(turn.reward < 0) ? "" : "wrong";
  return [make("p", { class: `turn ${kind}` }, said), textBlock(turn.segments)];
}

function textBlock(segments) {
  const block = make("div", { class: "text-block", tabindex: 0 });
  for (const [name, text, cut, advantage, picture] of segments) {
    if (picture) {
      block.append(pictureFigure(picture));
      continue;
    }
    const span = make(
      "span",
      { class: name, title: `${KIND_NAMES[name]}${advantage === null ? "" : `, advantage ${plain(advantage)}`}` },
      text,
    );
    if (advantage !== null) span.dataset.advantage = advantage;
    block.append(span);
    if (cut) block.append(make("span", { class: "cut" }, ` … ${cut} more characters`));
  }
  return block;
}

// The same problems at some checkpoints of an evaluation.
function evaluationBrowser(root, data) {
  const found = data.evaluations.filter((evaluation) => evaluation.steps.length);
  const draw = (number, step) => {
    const evaluation = found[number];
    const tools = make("div", { class: "tools" });
    if (found.length > 1)
      tools.append(
        chooser(
          "evaluation",
          found.map((one) => one.name),
          number,
          (index) => draw(index, 0),
        ),
      );
    tools.append(
      chooser(
        "checkpoint",
        evaluation.steps.map((one) => one.step),
        step,
        (index) => draw(number, index),
      ),
    );
    const detail = make("div", { class: "detail kinds" });
    const list = promptList(
      evaluation.steps[step].prompts,
      (prompt) => ({ colour: null, what: `${prompt.solved}/${prompt.of} solved` }),
      (prompt) => {
        const answers = make("div", { class: "answers" }, prompt.rows.map(card));
        detail.replaceChildren(question(prompt), make("h4", {}, "Answers"), answers);
      },
    );
    root.replaceChildren(tools, list, detail);
  };
  draw(0, 0);
}

// Background by size of the advantage, underline by its sign.
function paint(detail, most, mode) {
  detail.querySelectorAll("[data-advantage]").forEach((span) => {
    const value = Number(span.dataset.advantage);
    span.classList.toggle("positive", mode === "advantages" && value > 0);
    span.classList.toggle("negative", mode === "advantages" && value < 0);
    const strength = (0.06 + 0.5 * Math.min(1, Math.abs(value) / most)).toFixed(2);
    span.style.background = mode === "advantages" && value ? `rgba(var(${value > 0 ? "--plus" : "--minus"}), ${strength})` : "";
  });
}

function colourKey(mode, most) {
  const items =
    mode === "kinds"
      ? Object.entries(KIND_NAMES)
      : [
          ["positive", `pushed up, to +${plain(most)}`],
          ["negative", `pushed down, to −${plain(most)}`],
          ["plain", "advantage 0 or none: no push from rewards"],
        ];
  return items.map(([kind, text]) => make("span", { class: `sample ${kind}` }, text));
}

function validationBrowser(root, data) {
  const runs = data.validation.map((samples, run) => ({ ...samples, run })).filter((samples) => samples.prompts.length);
  const draw = (number) => {
    const samples = runs[number];
    const tools = make("div", { class: "tools" });
    if (runs.length > 1)
      tools.append(
        chooser(
          "run",
          runs.map((one) => data.runs[one.run]),
          number,
          draw,
        ),
      );
    const detail = make("div", { class: "detail" });
    const path = (prompt) => prompt.answers.map((answer) => (answer === null ? "·" : answer.score > 0 ? "✓" : "✗")).join(" ");
    const list = promptList(
      samples.prompts,
      (prompt) => ({ colour: null, what: path(prompt) }),
      (prompt) => {
        const answers = prompt.answers.map(
          (answer, index) =>
            answer &&
            make(
              "article",
              { class: `card ${answer.score > 0 ? "right" : "wrong"}` },
              make(
                "p",
                {},
                `step ${samples.steps[index]} · ${answer.score > 0 ? "✓" : "✗"} `,
                `reward ${answer.score === null ? "?" : plain(answer.score)}`,
              ),
              make(
                "div",
                { class: "text-block", tabindex: 0 },
                answer.text,
                answer.cut ? make("span", { class: "cut" }, ` … ${answer.cut} more characters`) : null,
              ),
            ),
        );
        detail.replaceChildren(
          question(prompt),
          make("h4", {}, "Answers"),
          make("div", { class: "answers" }, ...answers.filter(Boolean)),
        );
      },
    );
    root.replaceChildren(...(tools.children.length ? [tools] : []), list, detail);
  };
  draw(0);
}
