
"use strict";
// The page keeps what was judged in memory and asks the server for nothing else than its API.

const $ = (id) => document.getElementById(id);
const VERDICTS = { good: "✓ Good", defective: "✕ Defective" };
const PARALLEL = 2; // uploads at once
const MOST_PICTURES = 300; // older rows keep their numbers, and lose their pictures
const MOST_TRIES = 20;
const NO_THRESHOLDS =
  "The model has no thresholds, so that there are no verdicts: calibrate it with good photos.";

const history_ = []; // newest first
let model = null; // what /v1/model answered
let choices = []; // of the chosen product: [{of_1000, threshold, promised}]
let current = null;
let stream = null;
let waiting = [];
let uploading = 0;
let heatBefore = 60;

// The server

async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem("token");
    const headers = { ...options.headers };
    if (token) headers.Authorization = `Bearer ${token}`;
    const answer = await fetch(path, { ...options, headers });
    if (answer.status !== 401) return answer;
    await askForToken();
  }
}

let asking = null;
function askForToken() {
  asking ??= new Promise((resolve) => {
    $("ask").showModal();
    $("ask-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem("token", $("token").value.trim());
      $("token").value = "";
      $("ask").close();
      asking = null;
      resolve();
    };
  });
  return asking;
}
$("ask").addEventListener("cancel", (event) => event.preventDefault());

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function problemOf(answer) {
  try {
    return (await answer.json()).error || `status ${answer.status}`;
  } catch {
    return `The server answered with status ${answer.status}.`;
  }
}

async function judge(file, name) {
  const query = new URLSearchParams({ include: "heat" });
  query.append("include", "thumbnail");
  const product = productName();
  if (product) query.set("category", product);
  if (choices.length) query.set("false_positive_rate", choices[$("rate").value].of_1000 / 1000);
  for (let tries = 1; ; tries++) {
    const form = new FormData();
    form.append("images", file, name);
    let answer;
    try {
      answer = await ask(`v1/predict?${query}`, { method: "POST", body: form });
    } catch {
      return { name, error: "The server cannot be reached. Is it running?" };
    }
    if (answer.ok) return (await answer.json()).results[0];
    if (answer.status !== 503 || tries === MOST_TRIES) {
      return { name, error: await problemOf(answer) };
    }
    await sleep(Number(answer.headers.get("Retry-After")) || 1);
  }
}

function add(files) {
  waiting.push(...files);
  pump();
}

async function pump() {
  showState();
  while (uploading < PARALLEL && waiting.length) {
    const file = waiting.shift();
    uploading++;
    judge(file, file.name || "pasted image")
      .then((result) => remember(result, file))
      .finally(() => {
        uploading--;
        if (!uploading && !waiting.length) lookForNews();
        pump();
      });
  }
}

async function lookForDrift() {
  let answer;
  try {
    answer = await ask("v1/drift");
    if (!answer.ok) return;
  } catch {
    return; // the next image says that the server is gone
  }
  const moved = (await answer.json()).filter((one) => one.moved);
  $("drift").hidden = !moved.length;
  $("drift").textContent = moved
    .map((one) => {
      const product = one.category ? ` of ${one.category}` : "";
      const ways = one.compared.filter((each) => each.moved).map((each) => each.in_words);
      return `The last ${one.images} images${product} are unlike those that the thresholds ` +
        `were set on: ${ways.join(", ")}. Has the light, the camera or the product changed?`;
    })
    .join(" ");
}

async function lookForNews() {
  await lookForDrift();
  await lookForThresholds();
}
setInterval(() => model && lookForNews(), 30000);

// New ones may be set while the page is open: the list below is judged by them at once.
async function lookForThresholds() {
  try {
    const answer = await ask("v1/model");
    if (!answer.ok) return;
    const found = await answer.json();
    if (JSON.stringify(found.categories) === JSON.stringify(model.categories)) return;
    model = found;
  } catch {
    return;
  }
  showFacts();
  showProducts();
  chooseProduct();
}

function showFacts() {
  const set = model.calibrated
    ? ` · thresholds set ${new Date(model.calibrated).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}`
    : "";
  $("model").textContent = `Model ${model.name}${set}`;
}

// The products may come and go with the thresholds; the chosen one stays if it is there.
function showProducts() {
  const names = model.categories.map((one) => one.name);
  const before = $("product").selectedOptions[0]?.value;
  const option = (name) => new Option(name ?? "not known", keyOf(name));
  $("product").replaceChildren(...names.map(option));
  if (names.some((name) => keyOf(name) === before)) $("product").value = before;
  $("product-row").hidden = names.length < 2;
  if (!names.length) complain(NO_THRESHOLDS);
  else if ($("problem").textContent === NO_THRESHOLDS) $("problem").hidden = true;
}

let watched = 0; // images of the folder that the page has

async function lookAtFolder() {
  try {
    const answer = await ask(`v1/watched?after=${watched}`);
    if (answer.ok) {
      const { last, results } = await answer.json();
      watched = last; // the server may have been started again
      for (const result of results) remember(result, null);
    }
  } catch {
    // tried again below
  }
  setTimeout(lookAtFolder, 1000);
}

function showState() {
  const count = waiting.length + uploading;
  $("state").textContent = count ? `Judging ${count} ${count === 1 ? "image" : "images"} …` : "";
}

function remember(result, file) {
  const time = new Date();
  const row = { ...result, time, file, judgedAs: result.verdict };
  if (row.pictures?.thumbnail) row.picture = `data:image/jpeg;base64,${row.pictures.thumbnail}`;
  if (row.pictures?.heat) row.layer = `data:image/png;base64,${row.pictures.heat}`;
  delete row.pictures;
  history_.unshift(row);
  for (const old of history_.slice(MOST_PICTURES)) {
    old.picture = old.layer = old.file = undefined;
  }
  row.element = makeRow(row);
  $("rows").prepend(row.element);
  show(row);
  weigh();
}

// Verdicts at the chosen strictness

const keyOf = (name) => name ?? "";

function choicesOf(name) {
  const known = model.categories.find((one) => keyOf(one.name) === keyOf(name));
  if (!known) return [];
  const all = [known.default, ...known.choices];
  return [...new Map(all.map((one) => [one.of_1000, one])).values()].sort(
    (one, other) => one.of_1000 - other.of_1000,
  );
}

function verdictNow(row) {
  if (row.error || !choices.length) return row.verdict;
  const wanted = choices[$("rate").value].of_1000;
  // The default rate may differ between products only by their list: take the nearest.
  const own = choicesOf(row.category).find((one) => one.of_1000 === wanted);
  if (!own) return row.verdict;
  return row.score > own.threshold + model.score_tolerance ? "defective" : "good";
}

function weigh() {
  let more = 0;
  let fewer = 0;
  let shown = 0;
  const filter = $("search").value.trim().toLowerCase();
  const only = $("show").value;
  const counts = { good: 0, defective: 0, problem: 0 };
  for (const row of history_) {
    const verdict = verdictNow(row);
    // What was judged without thresholds had no verdict before.
    row.changed = !row.error && Boolean(row.judgedAs) && verdict !== row.judgedAs;
    more += row.changed && verdict === "defective";
    fewer += row.changed && verdict === "good";
    const kind = row.error ? "problem" : verdict;
    if (kind in counts) counts[kind]++;
    fillRow(row, verdict);
    const named = row.name.toLowerCase().includes(filter);
    const wanted = !only || only === kind || (only === "changed" && row.changed);
    row.element.hidden = !(named && wanted);
    shown += !row.element.hidden;
  }
  const total = history_.length;
  $("csv").disabled = !total;
  if (total) {
    const parts = [`${counts.defective} defective`, `${counts.good} good`];
    if (counts.problem) parts.push(`${counts.problem} not readable`);
    const filtered = shown < total ? `, ${shown} shown` : "";
    $("counts").textContent = `${total} ${total === 1 ? "image" : "images"}: ${parts.join(", ")}${filtered}`;
  }
  const changed = more + fewer;
  const judgedOnes = total - counts.problem;
  $("changes").textContent = !judgedOnes
    ? ""
    : !changed
      ? "No verdict of the images below would change."
      : `${changed} of ${judgedOnes} ${judgedOnes === 1 ? "verdict changes" : "verdicts change"}: ` +
        [more && `${more} to defective`, fewer && `${fewer} to good`].filter(Boolean).join(", ") + ".";
  showVerdict();
}

// The current image

function show(row) {
  current = row;
  $("stage").hidden = !row.picture;
  $("problem").hidden = !row.error;
  $("problem").textContent = row.error || "";
  $("kept").textContent = row.kept ? "Kept for new thresholds." : "";
  if (row.picture) {
    $("image").src = row.picture;
    $("image").alt = row.name;
    $("heat").hidden = !row.layer;
    if (row.layer) $("heat").src = row.layer;
    // As large as the window allows: small images are enlarged.
    document.querySelector(".picture").style.width = `${(62 * row.width) / row.height}vh`;
    drawBoxes(row);
    const size = `${row.width} × ${row.height} px`;
    $("caption").textContent = [row.name, row.category, size, row.note].filter(Boolean).join(" · ");
  }
  for (const other of history_) {
    const button = other.element?.firstChild;
    if (other === row) button?.setAttribute("aria-current", "true");
    else button?.removeAttribute("aria-current");
  }
  showVerdict();
}

function drawBoxes(row) {
  const svg = $("boxes");
  svg.setAttribute("viewBox", `0 0 ${row.width} ${row.height}`);
  svg.replaceChildren(
    ...row.boxes.flatMap(([left, top, right, bottom]) =>
      ["halo", "line"].map((kind) => {
        const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        const values = { x: left, y: top, width: right - left, height: bottom - top, class: kind };
        for (const [name, value] of Object.entries(values)) rect.setAttribute(name, value);
        return rect;
      }),
    ),
  );
}

function showVerdict() {
  if (!current) return;
  const verdict = current.error ? "" : verdictNow(current);
  $("verdict").dataset.verdict = verdict || "";
  const words = current.error ? "Not readable" : VERDICTS[verdict] || "No threshold";
  const text = document.createTextNode(words);
  const small = document.createElement("small");
  const regions = current.boxes?.length || 0;
  if (!current.error) {
    const places = regions === 1 ? "1 marked place" : `${regions} marked places`;
    small.textContent = current.changed
      ? `was ${current.judgedAs} when it was judged`
      : `${places} · score ${number(current.score)}`;
  }
  // Written only when it changes: else it is read aloud again and again.
  const whole = `${words}${small.textContent}`;
  if ($("verdict").textContent !== whole) $("verdict").replaceChildren(text, small);
  $("actions").hidden = !(model?.collects && (current.file || current.number) && verdict === "defective");
  $("after-all").hidden = Boolean(current.kept);
}

const number = (value) => (value == null ? "" : Number(value.toPrecision(4)).toString());

// The history

function makeRow(row) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const picture = document.createElement(row.picture ? "img" : "span");
  if (row.picture) Object.assign(picture, { src: row.picture, alt: "" });
  else picture.className = "blank";
  const text = document.createElement("span");
  for (const name of ["name", "what", "more"]) {
    const part = document.createElement("span");
    part.className = name;
    text.append(part);
  }
  button.append(picture, text);
  button.onclick = () => {
    show(row);
    $("verdict").scrollIntoView({ block: "nearest" });
  };
  item.append(button);
  return item;
}

function fillRow(row, verdict) {
  const part = (name) => row.element.querySelector(`.${name}`);
  if (!row.picture && row.element.querySelector("img")) row.element.querySelector("img").remove();
  part("name").textContent = row.name;
  part("name").title = row.name;
  part("what").textContent = row.error ? "Not readable" : VERDICTS[verdict] || "No threshold";
  part("what").dataset.verdict = row.error ? "" : verdict || "";
  const time = row.time.toLocaleTimeString();
  part("more").textContent = row.error
    ? time
    : `${time} · score\u00a0${number(row.score)}${row.changed ? ` · was ${row.judgedAs}` : ""}`;
}

function download() {
  // As predictions.csv has it. What spreadsheets take for a formula gets a quotation mark.
  const columns = ["time", "name", "score", "normalised_score", "threshold", "verdict", "verdict_now",
    "category", "boxes", "note", "error"];
  const cell = (value) => {
    let text = value == null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const rows = [...history_].reverse().map((row) =>
    columns
      .map((name) =>
        cell(
          name === "time" ? row.time.toISOString()
            : name === "verdict" ? row.judgedAs
              : name === "verdict_now" ? (row.error ? null : verdictNow(row))
                : row[name],
        ),
      )
      .join(","),
  );
  const blob = new Blob([`${[columns.join(","), ...rows].join("\r\n")}\r\n`], { type: "text/csv" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "judged.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function step(by) {
  const rows = history_.filter((row) => !row.element.hidden);
  const place = rows.indexOf(current) + by;
  if (rows[place]) show(rows[place]);
}

// The camera

async function openCamera() {
  if (stream) return closeCamera();
  if (!navigator.mediaDevices?.getUserMedia) {
    return complain("Browsers give a camera only to localhost and to pages of https.");
  }
  try {
    const video = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
    stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
  } catch (error) {
    const reasons = {
      NotAllowedError: "The browser was not allowed to use the camera: allow it beside the address.",
      NotFoundError: "No camera was found: connect one.",
      NotReadableError: "Another program has the camera: close it.",
    };
    return complain(reasons[error.name] || `The camera cannot be used (${error.name}).`);
  }
  $("video").srcObject = stream;
  $("live").hidden = false;
  $("camera").setAttribute("aria-pressed", "true");
  await $("video").play();
  $("shoot").focus();
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
  $("live").hidden = true;
  $("camera").setAttribute("aria-pressed", "false");
}

function shoot() {
  const video = $("video");
  if (!stream || !video.videoWidth) return;
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const stamp = new Date().toISOString().replaceAll(":", "-").slice(0, 19);
  // PNG: the model shall judge what the camera saw, not what JPEG makes of it.
  canvas.toBlob((blob) => add([new File([blob], `camera-${stamp}.png`)]), "image/png");
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
}

// Controls

function productName() {
  return $("product").value || null;
}

function chooseProduct() {
  const wanted = choices.length ? choices[$("rate").value].of_1000 : null;
  choices = model.categories.length ? choicesOf(productName()) : [];
  $("strictness").hidden = !choices.length;
  if (!choices.length) return;
  const known = model.categories.find((one) => keyOf(one.name) === keyOf(productName()));
  const place = choices.findIndex((one) => one.of_1000 === (wanted ?? known.default.of_1000));
  $("rate").max = choices.length - 1;
  $("rate").value = Math.max(place, 0);
  chooseRate();
}

function chooseRate() {
  const choice = choices[$("rate").value];
  const known = model.categories.find((one) => keyOf(one.name) === keyOf(productName()));
  $("stopped").textContent = number(choice.of_1000);
  $("rate").setAttribute("aria-valuetext", `${number(choice.of_1000)} of 1000 good parts are stopped`);
  const least = Math.ceil(1000 / (known.good_images + 1));
  $("promise").textContent = choice.promised
    ? `Follows from ${known.good_images} good images.`
    : `With only ${known.good_images} good images measured, expect up to ${least} of 1000.`;
  weigh();
}

function showHeat() {
  const value = Number($("heat-strength").value);
  $("heat").style.opacity = value / 100;
  $("heat-text").textContent = `${value} %`;
}

async function keepAsGood() {
  const row = current;
  const query = new URLSearchParams();
  if (row.category) query.set("category", row.category);
  if (!row.file) {
    query.set("watched", row.number); // the server has it
    query.set("name", row.name);
  }
  try {
    const answer = await ask(`v1/good?${query}`, { method: "POST", body: row.file });
    if (!answer.ok) return complain(await problemOf(answer));
  } catch {
    return complain("The server cannot be reached. Is it running?");
  }
  row.kept = true;
  if (current === row) show(row);
}

$("choose").onclick = () => $("files").click();
$("files").onchange = () => {
  add([...$("files").files]);
  $("files").value = "";
};
$("camera").onclick = openCamera;
$("leave").onclick = closeCamera;
$("shoot").onclick = shoot;
$("after-all").onclick = keepAsGood;
$("product").onchange = chooseProduct;
$("rate").oninput = chooseRate;
$("heat-strength").oninput = showHeat;
$("show-boxes").onchange = () => ($("boxes").style.display = $("show-boxes").checked ? "" : "none");
$("search").oninput = weigh;
$("show").onchange = weigh;
$("csv").onclick = download;

let depth = 0; // of elements that a dragged file has entered and not left
addEventListener("dragenter", (event) => {
  event.preventDefault();
  depth++;
  $("drop").hidden = false;
});
addEventListener("dragleave", () => {
  depth = Math.max(depth - 1, 0);
  $("drop").hidden = !depth;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  add([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => add([...event.clipboardData.files]));

const KEYS = {
  o: () => $("choose").click(),
  c: () => openCamera(),
  b: () => $("show-boxes").click(),
  m: () => {
    const slider = $("heat-strength");
    if (slider.value > 0) heatBefore = slider.value;
    slider.value = slider.value > 0 ? 0 : heatBefore;
    showHeat();
  },
  "/": () => $("search").focus(),
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
};
addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || $("ask").open) return;
  if (event.key === " " && stream && !event.target.matches("button, summary, input")) {
    event.preventDefault();
    shoot();
    return;
  }
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

async function start() {
  showHeat();
  try {
    const answer = await ask("v1/model");
    if (!answer.ok) return complain(await problemOf(answer));
    model = await answer.json();
  } catch {
    return complain("The server cannot be reached. Is it running?");
  }
  showFacts();
  showProducts();
  chooseProduct();
  $("folder").hidden = !model.watches;
  if (model.watches) lookAtFolder();
}

start();
