"use strict";
// Fills the charts with the numbers that the reader picks; sorts and filters the table of runs.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const views = {};

async function draw(place, chart, metric, rows, signals) {
  const spec = structuredClone(chart);
  const narrow = find(place).clientWidth < 500;
  const axis = place === "curves-chart" ? "y" : "x";
  for (const layer of spec.layer) {
    layer.encoding[axis].scale = metric.scale;
    layer.encoding[axis].title = metric.title;
  }
  spec.datasets = { rows };
  spec.description = `${metric.title} of ${data.arms.length} arms`;
  spec.config.axis.labelLimit = narrow ? 110 : 260;
  for (const param of spec.params) {
    if (param.name in signals) { param.value = signals[param.name]; }
  }
  if (views[place]) { views[place].finalize(); }
  const made = await vegaEmbed(find(place), spec, {
    actions: false, renderer: "svg", logLevel: 1, // an arm without diverged runs is no warning
    ast: true, // expressions are interpreted: the page's policy forbids to compile them
    tooltip: { theme: "custom" },
  });
  views[place] = made.view;
}

function fill(select, metrics) {
  const before = select.value;
  select.replaceChildren(...Object.entries(metrics).map(
    ([name, metric]) => new Option(metric.title.replace(" (logarithmic)", ""), name)));
  if (before in metrics) { select.value = before; }
}

function lacking(metric) {
  return metric.without.flatMap(([lost, all], arm) =>
    lost ? [`${data.arms[arm]} ${lost} of ${all}`] : []).join(", ");
}

function curves() {
  const group = find("curves-group"), select = find("curves-metric"), seed = find("curves-seed");
  const boxes = [...find("curves-arms").querySelectorAll("input")];
  // Ten lines of seeds may be half opaque; a hundred would hide the median.
  const faint = Math.max(0.1, Math.min(
    0.5, 1.6 / Math.sqrt(data.finals.rows.length / data.arms.length)));
  const signals = () => ({
    shown: boxes.filter((box) => box.checked).map((box) => Number(box.value)), seed: seed.value,
    faint,
  });
  const show = () => {
    const metric = data.curves.groups[group.value][select.value];
    const together = metric.lines.filter((line) => line[1] === null).map((line) => line[0]);
    const rows = metric.lines.flatMap(([arm, number, diverged, steps, values]) =>
      steps.map((step, place) => ({
        arm, seed: number, run: `${arm} ${number}`, step, value: values[place],
        arm_name: data.arms[arm], end: diverged && place === steps.length - 1,
        few: steps.length < 3, alone: !together.includes(arm),
      })));
    const without = lacking(metric);
    find("curves-without").textContent = without ? `Without a point of this curve: ${without}.` : "";
    return draw("curves-chart", data.curves.chart, metric, rows, signals());
  };
  const choose = () => { fill(select, data.curves.groups[group.value]); return show(); };
  const update = () => {
    const view = views["curves-chart"];
    for (const [name, value] of Object.entries(signals())) { view.signal(name, value); }
    return view.runAsync();
  };
  group.onchange = choose;
  select.onchange = show;
  seed.onchange = update;
  for (const box of boxes) { box.onchange = update; }
  return choose();
}

function finals() {
  const select = find("finals-metric");
  const show = () => {
    const metric = data.finals.metrics[select.value];
    const rows = data.finals.rows.flatMap(([arm, seed, outcome], place) =>
      metric.values[place] === null ? [] : [{
        arm, seed, outcome, value: metric.values[place], arm_name: data.arms[arm],
        lane: data.finals.rows.length > data.arms.length ? [0, 2, -1, 1, -2][seed % 5] : 0,
      }]);
    metric.medians.forEach((value, arm) => {
      if (value !== null && metric.without[arm][1] > 1) { rows.push({ arm, seed: null, value, arm_name: data.arms[arm] }); }
    });
    const without = lacking(metric);
    find("finals-without").textContent = without
      ? `Without a value: ${without}; they count as the worst in the median.` : "";
    return draw("finals-chart", data.finals.chart, metric, rows, { names: data.arms });
  };
  fill(select, data.finals.metrics);
  select.onchange = show;
  return show();
}

function runs() {
  const table = find("runs-table"), body = table.tBodies[0], rows = [...body.rows];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  // The report writes .5, 1,000 and −2.
  const parse = (text) => Number(text.replaceAll(",", "").replace("−", "-") || "x");
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const down = head.ariaSort === "ascending";
      for (const other of table.tHead.rows[0].cells) { other.ariaSort = null; }
      head.ariaSort = down ? "descending" : "ascending";
      const order = (one, two) => {
        const [first, second] = [one, two].map((row) => row.cells[column].textContent);
        const numbers = [parse(first), parse(second)];
        return numbers.some(Number.isNaN) ? compare(first, second) : numbers[0] - numbers[1];
      };
      rows.sort((one, two) => (down ? -1 : 1) * order(one, two));
      body.append(...rows);
    };
  });
  find("runs-filter").oninput = (event) => {
    const word = event.target.value.toLowerCase();
    for (const row of rows) { row.hidden = !texts.get(row).includes(word); }
    const left = rows.filter((row) => !row.hidden).length;
    find("runs-count").value = word ? `${left} of ${rows.length}` : "";
  };
}

for (const part of document.querySelectorAll(".script")) { part.hidden = false; }
runs();
Promise.all([find("curves-chart") && curves(), find("finals-chart") && finals()])
  .then(() => { document.documentElement.dataset.ready = "true"; });
