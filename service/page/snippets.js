// The request on screen as text to paste: curl, JavaScript, Python.
// A request is {path, body} (JSON), {path, body, files: {image, mask}} (multipart) or {urls: [...]} (plain GET).

import { key, root } from "./api.js";

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const pretty = (value) => JSON.stringify(value).replaceAll(/("(?:\\.|[^"\\])*")(:)|("(?:\\.|[^"\\])*")|,/g, (all, name, colon) =>
  name ? `${name}${colon} ` : all === "," ? ", " : all);
const address = (path) => new URL(path, root).href;
const fileOf = (url) => decodeURIComponent(url.split("?")[0].split("/").slice(-2).join("-"));
const named = (url) => fileOf(url).replace(".png", `-steps${new URLSearchParams(url.split("?")[1]).get("steps")}.png`);

function curl(request) {
  const auth = key.get() ? ' \\\n  -H "Authorization: Bearer $ONESTEP_API_KEY"' : "";
  if (request.urls) {
    return request.urls.map((url) => `curl --fail -o ${shell(named(url))} ${shell(address(url))}${auth}`).join("\n");
  }
  const start = `curl --fail -o onestep.png ${shell(address(request.path))}${auth} \\\n  -H 'Accept: image/png'`;
  if (!request.files) {
    return `${start} -H 'Content-Type: application/json' \\\n  -d ${shell(pretty(request.body))}`;
  }
  const files = Object.keys(request.files).map((name) => ` -F ${name}=@${name}.png`).join("");
  return `${start} \\\n ${files} \\\n  -F ${shell(`request=${pretty(request.body)}`)}`;
}

function javascript(request) {
  const auth = key.get() ? "Authorization: `Bearer ${apiKey}`, " : "";
  const show = `if (!answer.ok) throw new Error((await answer.json()).detail);
const picture = new Image();
picture.src = URL.createObjectURL(await answer.blob());
document.body.append(picture);`;
  if (request.urls) {
    const urls = `[\n${request.urls.map((url) => `  ${JSON.stringify(address(url))},`).join("\n")}\n]`;
    if (auth) {
      return `for (const url of ${urls}) {\n  const answer = await fetch(url, { headers: { ${auth.slice(0, -2)} } });\n  ${show.replaceAll("\n", "\n  ")}\n}`;
    }
    return `for (const url of ${urls}) {\n  const picture = new Image();\n  picture.src = url;\n  document.body.append(picture);\n}`;
  }
  if (!request.files) {
    return `const answer = await fetch(${JSON.stringify(address(request.path))}, {
  method: "POST",
  headers: { ${auth}Accept: "image/png", "Content-Type": "application/json" },
  body: JSON.stringify(${pretty(request.body)}),
});
${show}`;
  }
  const files = Object.keys(request.files)
    .map((name) => `form.append("${name}", await (await fetch("${name}.png")).blob(), "${name}.png");\n`).join("");
  return `const form = new FormData();
${files}form.append("request", JSON.stringify(${pretty(request.body)}));
const answer = await fetch(${JSON.stringify(address(request.path))}, {
  method: "POST",
  headers: { ${auth}Accept: "image/png" },
  body: form,
});
${show}`;
}

function python(request) {
  const auth = key.get() ? '"Authorization": f"Bearer {os.environ[\'ONESTEP_API_KEY\']}"' : "";
  const imports = `${auth ? "import os\n" : ""}${request.files ? "import json\n" : ""}${auth || request.files ? "\n" : ""}import httpx\n\n`;
  const save = (name) => `answer.raise_for_status()\nwith open(${name}, "wb") as file:\n    file.write(answer.content)`;
  if (request.urls) {
    const pairs = request.urls.map((url) => `    (${JSON.stringify(named(url))}, ${JSON.stringify(address(url))}),`).join("\n");
    const headers = auth ? `, headers={${auth}}` : "";
    return `${imports}for name, url in [\n${pairs}\n]:\n    answer = httpx.get(url${headers}, timeout=60)\n    ${save("name").replaceAll("\n", "\n    ")}`;
  }
  const body = request.files
    ? `    files={${Object.keys(request.files).map((name) => `"${name}": open("${name}.png", "rb")`).join(", ")}},
    data={"request": json.dumps(${pretty(request.body)})},`
    : `    json=${pretty(request.body)},`;
  return `${imports}answer = httpx.post(
    ${JSON.stringify(address(request.path))},
${body}
    headers={"Accept": "image/png"${auth ? `, ${auth}` : ""}},
    timeout=300,
)
${save('"onestep.png"')}`;
}

const LANGUAGES = { curl, javascript, python };

export const snippet = (request, language) => LANGUAGES[language](request);
