/* What a page does beside being read: blocks are copied, long ones fold. */
"use strict";

const MANY = 28; /* lines, above which what a block prints is folded */

/* What is worth copying: the commands of a console, the code of an example. */
function textOf(pre) {
  const lines = pre.textContent.replace(/\n$/, "").split("\n");
  const prompts = /^(\$|>>>|\.\.\.) ?/;
  if (!/^(\$|>>>) /.test(lines[0])) return lines.join("\n");
  return lines.filter((line) => prompts.test(line)).map((line) => line.replace(prompts, "")).join("\n");
}

function addCopying(block, pre) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "copy";
  button.setAttribute("aria-label", "Copy this block");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(textOf(pre));
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
  block.append(button);
}

/* A table keeps its columns, and is scrolled; sentences wrap. */
function isTable(text) {
  return text.split("\n").filter((line) => /\S {2,}\S/.test(line)).length > 1;
}

function addFolding(block, count) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "unfold";
  button.textContent = `show all ${count} lines`;
  block.classList.add("folded");
  button.addEventListener("click", () => {
    block.classList.remove("folded");
    button.remove();
  });
  block.after(button);
}

function dress(block) {
  const pre = block.querySelector("pre");
  if (!pre) return;
  const isOutput = block.closest(".highlight-text, .cell_output, .highlight-myst-ansi");
  if (!isOutput) addCopying(block, pre);
  if (isOutput && !isTable(pre.textContent)) block.classList.add("wraps");
  const count = pre.textContent.trimEnd().split("\n").length;
  const isHelp = pre.textContent.startsWith("Usage:"); /* which is there to be read */
  if (isOutput && !isHelp && count > MANY) addFolding(block, count);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("div.highlight").forEach(dress);
});
