// The page: pictures in, classes and votes out. No library, no build step, no request to anyone but this server.

const AT_A_TIME = 4;
const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers() });
  const answer = await response.json();
  if (response.status === 401) askForKey();
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

function askForKey() {
  find("key-form").hidden = false;
  find("key").focus();
}

// ---- pictures

async function classifyAll(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || file.type === "");
  if (!pictures.length) return say("There is no picture among these.", true);
  const queue = pictures.map((file) => ({ file, card: addCard(file) }));
  const total = queue.length;
  let failed = 0;
  say(total === 1 ? "Classifying …" : `Classifying ${total} pictures …`);
  const work = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) failed += !(await classify(next.file, next.card));
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
  const done = `${total - failed} of ${total} classified.`;
  if (total === 1) say(failed ? "It could not be classified." : find("results").querySelector(".verdict").textContent, failed);
  else say(done, failed);
}

function addCard(file) {
  const card = find("result").content.cloneNode(true).firstElementChild;
  const picture = card.querySelector("img");
  picture.src = URL.createObjectURL(file);
  picture.onload = () => URL.revokeObjectURL(picture.src);
  card.querySelector("h2").textContent = file.name || "Pasted picture";
  card.querySelector("h3").hidden = true;
  find("results").prepend(card);
  return card;
}

async function classify(file, card) {
  const form = new FormData();
  form.append("image", file);
  const start = performance.now();
  try {
    show(card, await ask("classify", { method: "POST", body: form }), performance.now() - start);
    return true;
  } catch (error) {
    const verdict = card.querySelector(".verdict");
    verdict.className = "verdict error";
    verdict.textContent = error.message;
    return false;
  }
}

function show(card, answer, milliseconds) {
  const [best] = answer.predictions;
  const votes = answer.learners ?? [];
  const agreeing = votes.filter((vote) => vote.agrees).length;
  const agreement = agreeing === votes.length ? "all learners agree" : `${agreeing} of ${votes.length} learners agree`;
  card.querySelector(".verdict").textContent = `${best.label}, ${percent(best.probability)}; ${agreement}.`;
  card.querySelector(".classes").append(...answer.predictions.map(bar));
  card.querySelector("h3").hidden = !votes.length;
  card.querySelector(".votes").append(...votes.map(voteLine));
  card.querySelector(".took").textContent = `${Math.round(milliseconds)} ms, model ${answer.model.name} ${answer.model.version}`;
}

function bar({ label, probability }) {
  const item = element("li");
  const fill = element("div", "fill");
  fill.style.width = percent(probability).replace(" ", "");
  const track = element("div", "track");
  track.append(fill);
  item.append(element("span", "name", label), element("span", "percent", percent(probability)), track);
  return item;
}

function voteLine({ learner, label, probability, agrees }) {
  const item = element("li");
  item.append(
    element("span", agrees ? "agrees" : "differs", agrees ? "✓ agrees" : "✗ differs"),
    element("span", "name", `${label}, ${percent(probability)}`),
    element("span", "learner", learner),
  );
  return item;
}

function say(text, isError = false) {
  find("status").textContent = text;
  find("status").className = isError ? "error" : "";
}

// ---- the model's card

async function showModel() {
  try {
    describe(await ask("model"));
  } catch (error) {
    find("model-line").textContent = error.message;
  }
}

function describe(model) {
  const top1 = model.accuracy.top1;
  find("model-line").textContent =
    `${model.name}: ${model.learners.length} networks that tell ${model.classes.length} classes apart` +
    (top1 === undefined ? "." : `, right in ${percent(top1)} of the test pictures.`);
  const groups = ["many", "medium", "few"].filter((group) => model.accuracy[group] != null);
  const facts = {
    Version: model.version,
    Technique: model.technique,
    "Runs on": model.execution_provider.replace("ExecutionProvider", ""),
    "Sees pictures at": `${model.image_size[1]} × ${model.image_size[0]} pixels`,
    ...Object.fromEntries(groups.map((group) => [`Top-1, classes with ${group}`, percent(model.accuracy[group])])),
  };
  find("facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]),
  );
  find("learners").replaceChildren(...model.learners.map(learnerRow));
  find("classes-title").textContent = `${model.classes.length} classes, with their training images`;
  find("classes").textContent = model.classes.map((name, index) => `${name} (${model.class_counts[index]})`).join(", ");
  find("card").hidden = false;
}

function learnerRow(learner) {
  const row = element("tr");
  const name = element("th", "", learner.architecture);
  name.scope = "row";
  row.append(name, ...[learner.resolution, percent(learner.weight), percent(learner.top1)].map((text) => element("td", "", text)));
  return row;
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
  find("key-form").hidden = true;
  showModel();
});

showModel();
