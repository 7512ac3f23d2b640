// Filters the samples by their tags.
const samples = [...document.querySelectorAll(".sample")];
const buttons = [...document.querySelectorAll("[data-dimension]")];
const count = document.getElementById("count");

// Within a dimension any chosen value will do; every dimension with a choice has to fit.
function filter() {
  const chosen = new Map();
  for (const button of buttons) {
    if (button.getAttribute("aria-pressed") !== "true") continue;
    const { dimension, value } = button.dataset;
    chosen.set(dimension, [...(chosen.get(dimension) ?? []), value]);
  }
  let shown = 0;
  for (const sample of samples) {
    sample.hidden = ![...chosen].every(([dimension, values]) => values.includes(sample.dataset[dimension]));
    shown += !sample.hidden;
  }
  count.textContent = shown ? `${shown} of ${samples.length} shown` : "no sample has all of these";
}

for (const button of buttons) {
  const { dimension, value } = button.dataset;
  const having = samples.filter((sample) => sample.dataset[dimension] === value).length;
  const number = document.createElement("small");
  number.textContent = having;
  button.append(" ", number);
  button.disabled = !having;
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    filter();
  });
}
