const values = JSON.parse(document.getElementById("values").textContent);
const slider = document.getElementById("epoch");
const percent = value => `${value.toFixed(1)}%`;
const loss = value => value.toFixed(2);
const text = {
  training: percent,
  validation: percent,
  gap: value => value.toFixed(1),
  training_loss: loss,
  validation_loss: loss,
  certainty: percent,
  left: value => value.toLocaleString("en"),
  share_left: percent,
};

// The value after an epoch, or the last one before it, with its epoch.
function measured(list, epoch) {
  let place = Math.min(epoch, list.length) - 1;
  while (place >= 0 && list[place] === null) place -= 1;
  return place < 0 ? null : { value: list[place], epoch: place + 1 };
}

function fill(place, epoch) {
  const name = place.dataset.name;
  const found = measured(values[place.closest("[data-line]").dataset.line][name], epoch);
  place.textContent = found === null ? "" : text[name](found.value);
  if (found !== null && found.epoch !== epoch) place.insertAdjacentHTML("beforeend", ` <small>epoch ${found.epoch}</small>`);
}

function show(wanted) {
  const epoch = Math.min(Math.max(Math.round(wanted), 1), Number(slider.max));
  slider.value = epoch;
  for (const place of document.querySelectorAll(".now, .slider output")) place.textContent = epoch;
  for (const place of document.querySelectorAll("[data-name]")) fill(place, epoch);
  for (const cursor of document.querySelectorAll(".cursor")) {
    const x = `${Number(cursor.dataset.zero) + cursor.dataset.step * epoch}%`;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  }
  for (const picture of document.querySelectorAll("[data-until]")) {
    picture.classList.toggle("right", Number(picture.dataset.until) < epoch);
  }
}

function follow(chart, cursor, event) {
  const box = chart.getBoundingClientRect();
  show((100 * (event.clientX - box.left) / box.width - cursor.dataset.zero) / cursor.dataset.step);
}

for (const cursor of document.querySelectorAll(".cursor")) {
  const chart = cursor.closest("svg");
  chart.addEventListener("pointerdown", event => {
    chart.setPointerCapture(event.pointerId);
    follow(chart, cursor, event);
  });
  chart.addEventListener("pointermove", event => {
    if (chart.hasPointerCapture(event.pointerId)) follow(chart, cursor, event);
  });
}
for (const button of document.querySelectorAll("[data-epoch]")) {
  button.addEventListener("click", () => show(Number(button.dataset.epoch)));
}
slider.addEventListener("input", () => show(Number(slider.value)));
document.addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && event.target === document.body) show(Number(slider.value) + step);
});
for (const part of document.querySelectorAll(".slider, .moment")) part.hidden = false;
show(Number(slider.value));
