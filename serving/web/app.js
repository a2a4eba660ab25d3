// The page: pictures in, classes and votes out. No library, no build step, no request to anyone but this server.

const AT_A_TIME = 4;
const TRIES_WHEN_FULL = 5;
const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// ---- the server

/** Ask the server; wait for a key where it wants one, and for room where it is full. */
async function ask(path, options = {}, tries = TRIES_WHEN_FULL) {
  const key = sessionStorage.getItem("key");
  // A header's text is bytes, and the server's keys are UTF-8.
  const bytes = String.fromCharCode(...new TextEncoder().encode(key ?? ""));
  const headers = key ? { authorization: `Bearer ${bytes}` } : {};
  const response = await fetch(path, { ...options, headers }).catch(() => {
    throw new Error("The server can't be reached.");
  });
  if (response.ok) return response.json();
  const message = await messageOf(response);
  if (response.status === 401) {
    await anotherKey(key, message);
    return ask(path, options, tries);
  }
  if (response.status === 503 && tries > 1) {
    // Not all at once: those that were refused together would meet again.
    await pause((Number(response.headers.get("retry-after")) || 1) * (1 + Math.random()));
    return ask(path, options, tries - 1);
  }
  throw new Error(message);
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`; // something between here and the server
  }
}

let givenKey = null;

/** Wait until a key other than `refused` is known: one form, however many requests wait for it. */
async function anotherKey(refused, message) {
  if (sessionStorage.getItem("key") !== refused) return;
  if (!givenKey) {
    givenKey = Promise.withResolvers();
    find("key-form").hidden = false;
    find("key-problem").textContent = refused ? message : "";
    find("key").focus();
  }
  await givenKey.promise;
}

// ---- pictures

async function classifyAll(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || file.type === "");
  if (!pictures.length) return say("There is no picture among these.", true);
  const queue = pictures.map((file) => ({ file, card: addCard(file) }));
  find("results").prepend(...queue.map(({ card }) => card));
  say(queue.length === 1 ? "Classifying …" : `Classifying ${queue.length} pictures …`);
  const outcomes = [];
  const work = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) outcomes.push(await classify(next.file, next.card));
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
  const failed = outcomes.filter((outcome) => !outcome.ok).length;
  const text = outcomes.length === 1 ? outcomes[0].text : `${outcomes.length - failed} of ${outcomes.length} classified.`;
  say(text, failed > 0);
}

function addCard(file) {
  const card = find("result").content.cloneNode(true).firstElementChild;
  const picture = card.querySelector("img");
  const name = file.name || "Pasted picture";
  picture.src = URL.createObjectURL(file);
  picture.onload = () => URL.revokeObjectURL(picture.src);
  picture.onerror = () => card.classList.add("no-picture"); // what the browser can't show, the server may still read
  card.querySelector("h2").textContent = name;
  card.setAttribute("aria-label", name);
  return card;
}

async function classify(file, card) {
  const form = new FormData();
  form.append("image", file);
  const start = performance.now();
  try {
    const answer = await ask("classify", { method: "POST", body: form });
    return { ok: true, text: show(card, answer, performance.now() - start) };
  } catch (error) {
    // The card has the name above it already.
    const reason = error.message.replace(`${file.name}: `, "");
    card.querySelector(".verdict").replaceChildren(element("span", "error", reason));
    return { ok: false, text: error.message };
  }
}

/** Fill a picture's card, and return what it says in one sentence. */
function show(card, { predictions, learners: votes, model }, milliseconds) {
  const [best] = predictions;
  const agreeing = votes.filter((vote) => vote.agrees).length;
  const unanimous = agreeing === votes.length;
  const agreement = unanimous ? `all ${plural(votes.length, "learner")} agree` : `${agreeing} of ${plural(votes.length, "learner")} agree`;
  card.querySelector(".verdict").replaceChildren(element("strong", "", best.label), " ", element("span", "percent", percent(best.probability)));
  const badge = card.querySelector(".agreement");
  badge.textContent = `${unanimous ? "✓" : "≠"} ${agreement[0].toUpperCase()}${agreement.slice(1)}`;
  badge.classList.add(unanimous ? "agrees" : "differs");
  card.querySelector(".classes").append(...predictions.map(bar));
  card.querySelector(".votes").append(...votes.map(voteLine));
  card.querySelector(".took").textContent = `${Math.round(milliseconds)} ms, there and back · model ${model.name} ${model.version}`;
  card.querySelector(".details").hidden = false;
  return `${best.label}, ${percent(best.probability)}; ${agreement}.`;
}

function bar({ label, probability }) {
  const fill = element("div", "fill");
  fill.style.width = `${100 * probability}%`;
  const track = element("div", "track", fill);
  return element("li", "", element("span", "name", label), element("span", "percent", percent(probability)), track);
}

function voteLine({ learner, label, probability, agrees }) {
  const mark = element("span", agrees ? "agrees" : "differs", agrees ? "✓ agrees" : "≠ differs");
  const name = element("span", "name", label);
  return element("li", "", element("span", "learner quiet", learner), name, element("span", "percent", percent(probability)), mark);
}

function say(text, isError = false) {
  find("status").textContent = text;
  find("status").classList.toggle("error", isError);
}

// ---- the model's card

async function showModel() {
  find("command").textContent = `curl -F image=@photo.jpg ${new URL("classify", location.href)}`;
  try {
    describe(await ask("model"));
  } catch (error) {
    find("model-line").textContent = error.message;
  }
}

function describe(model) {
  const { accuracy, learners, classes } = model;
  const tested = accuracy.top1 == null ? "" : `, right in ${percent(accuracy.top1)} of the test pictures`;
  const networks = plural(learners.length, "network");
  find("model-line").textContent = `${model.name}: ${networks} that tell ${classes.length} classes apart${tested}.`;
  const groups = { many: "over 100 images", medium: "20 to 100 images", few: "under 20 images" };
  const measured = Object.entries(groups).filter(([group]) => accuracy[group] != null);
  const facts = {
    ...(accuracy.top1 == null ? {} : { "Top-1 accuracy": percent(accuracy.top1) }),
    ...Object.fromEntries(measured.map(([group, images]) => [`Classes with ${images}`, percent(accuracy[group])])),
    "Runs on": `${model.runtime}, ${model.execution_provider.replace("ExecutionProvider", "")}`,
    "Sees pictures at": `${model.image_size[1]} × ${model.image_size[0]} pixels`,
    Technique: model.technique,
    Version: model.version,
  };
  find("facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => element("div", "", element("dt", "", name), element("dd", "", value))),
  );
  find("learners").replaceChildren(...learners.map(learnerRow));
  showCounts(classes.map((label, index) => ({ label, count: model.class_counts[index] })));
  find("card").hidden = false;
}

/** Draw the long tail: one bar a class, from the one with most training images to the one with fewest. */
function showCounts(classes) {
  const sorted = classes.toSorted((one, other) => other.count - one.count);
  const [most, least] = [sorted[0], sorted.at(-1)];
  const bars = sorted.map(({ count }, index) => {
    const height = Math.max(1, (100 * count) / most.count);
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const place = { x: index + 0.1, y: 100 - height, width: 0.8, height };
    for (const [name, value] of Object.entries(place)) bar.setAttribute(name, value);
    return bar;
  });
  const line = `From ${plural(most.count, "image")} (${most.label}) to ${plural(least.count, "image")} (${least.label}).`;
  find("counts").setAttribute("viewBox", `0 0 ${sorted.length} 100`);
  find("counts").setAttribute("aria-label", line);
  find("counts").replaceChildren(...bars);
  find("counts-line").textContent = line;
  find("classes-title").textContent = `All ${classes.length} classes`;
  find("classes").replaceChildren(...sorted.map(({ label, count }) => element("li", "", `${label} `, element("span", "quiet", `${count}`))));
}

function learnerRow(learner) {
  const name = element("th", "", learner.architecture);
  name.scope = "row";
  return element("tr", "", name, ...[learner.resolution, percent(learner.weight), percent(learner.top1)].map((text) => element("td", "", text)));
}

// ---- events

find("files").addEventListener("change", (event) => {
  classifyAll(event.target.files);
  event.target.value = "";
});

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) classifyAll(event.clipboardData.files);
});

// The whole window takes a drop: a picture that misses the field would else replace the page.
for (const [type, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", isOver);
    if (type === "drop" && event.dataTransfer.files.length) classifyAll(event.dataTransfer.files);
  });
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", find("key").value);
  find("key").value = "";
  find("key-form").hidden = true;
  givenKey?.resolve();
  givenKey = null;
  find("files").focus();
});

showModel();
