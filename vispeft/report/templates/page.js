"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // theme: the reader's choice is kept where the browser lets a local file use its storage
  const root = document.documentElement;
  const theme = document.querySelector(".theme");
  const stored = () => { try { return localStorage.getItem("vispeft-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const showTheme = () => { theme.setAttribute("aria-pressed", isDark()); theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", isDark() ? "Switch to light colours" : "Switch to dark colours"); };
  if (stored()) root.dataset.theme = stored();
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("vispeft-theme", root.dataset.theme); } catch { /* no storage: for this visit only */ }
    showTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  showTheme();

  // sortable tables: by value, undefined values last; a second click reverses the order
  const order = cell => cell.dataset.order ?? cell.textContent.trim();
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = a - b;
    return sign * (Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference);
  };
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const direction = head.getAttribute("aria-sort") === first ? second : first;
        all("thead th", table).forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", direction);
        const sign = direction === "ascending" ? 1 : -1;
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort((a, b) => compare(order(a.cells[column]), order(b.cells[column]), sign)));
      });
    });
  }

  // buttons that copy a command
  for (const button of all("button.copy")) {
    const text = button.previousElementSibling.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      let copied = true;
      try { await navigator.clipboard.writeText(text); } catch {
        getSelection().selectAllChildren(button.previousElementSibling);
        copied = document.execCommand("copy");
      }
      button.textContent = copied ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // images: m, b and l switch masks, boxes and labels; a pair enlarges to the width of the page
  const switches = { m: "show-masks", b: "show-boxes", l: "show-labels" };
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    const box = document.getElementById(switches[event.key]);
    if (box) box.checked = !box.checked;
    if (event.key === "Escape") hide();
  });
  for (const button of all("button.zoom")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const isLarge = button.closest(".pair").classList.toggle("zoomed");
      button.setAttribute("aria-pressed", isLarge);
      button.textContent = isLarge ? "Shrink" : "Enlarge";
    });
  }

  // details of the dot, line or row under the pointer, which is highlighted everywhere on the page
  const tip = document.getElementById("tip");
  let marked = "", touched = null;
  const mark = key => {
    if (key === marked) return;
    all(".is-on").forEach(each => each.classList.remove("is-on"));
    marked = key;
    document.body.classList.toggle("has-on", Boolean(key));
    if (key) all(`[data-key="${CSS.escape(key)}"]`).forEach(each => each.classList.add("is-on"));
  };
  const show = (content, x, y) => {
    tip.replaceChildren(content);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = x + 14 + width > document.documentElement.clientWidth ? x - 14 - width : x + 14;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${Math.max(6, Math.min(y - height / 2, innerHeight - height - 6))}px`;
  };
  const hide = () => { tip.hidden = true; mark(""); touched = null; };
  const details = (key, more) => {
    const template = document.getElementById(`tip-${key}`);
    const content = template ? template.content.cloneNode(true) : document.createDocumentFragment();
    if (more) content.append(Object.assign(document.createElement("p"), { textContent: more }));
    return content;
  };
  const point = dot => {
    const box = dot.getBoundingClientRect();
    mark(dot.dataset.key);
    show(details(dot.dataset.key), box.left + box.width / 2, box.top + box.height / 2);
  };
  for (const dot of all(".dot")) {
    dot.addEventListener("pointerenter", () => point(dot));
    dot.addEventListener("pointerleave", event => { if (event.pointerType !== "touch") hide(); });
    dot.addEventListener("focus", () => point(dot));
    dot.addEventListener("blur", hide);
    // touch has no hover: the first touch shows the details, the second follows the link
    dot.addEventListener("pointerup", event => { dot.dataset.pointer = event.pointerType; });
    dot.addEventListener("click", event => {
      if (dot.dataset.pointer !== "touch" || touched === dot) return;
      event.preventDefault();
      point(dot);
      touched = dot;
    });
  }
  document.addEventListener("pointerdown", event => { if (!event.target.closest(".dot")) hide(); });
  for (const row of all("tr[data-key]")) {
    row.addEventListener("pointerenter", () => mark(row.dataset.key));
    row.addEventListener("pointerleave", () => mark(""));
  }

  // the line nearest to the pointer, and its value there
  const number = value => (Math.abs(value) >= 1e4 ? value.toExponential(2) : `${+value.toPrecision(4)}`);
  for (const area of all(".area")) {
    const lines = all("g.line", area);
    if (!lines.length) continue;
    const scale = name => {
      const [low, high, isLog] = area.dataset[name].split(" ").map(Number);
      return share => (isLog ? low * (high / low) ** share : low + (high - low) * share);
    };
    const toX = scale("x"), toY = scale("y");
    let places = null;
    const nearest = (left, top, size) => {
      places ??= lines.map(line => line.firstElementChild.getAttribute("points").split(" ").map(pair => pair.split(",").map(Number)));
      let best = null;
      places.forEach((points, index) => points.forEach(([x, y]) => {
        const distance = Math.hypot((x - left) * size.width, (y - top) * size.height) / 100;
        if (!best || distance < best.distance) best = { index, x, y, distance };
      }));
      return best;
    };
    area.addEventListener("pointermove", event => {
      if (event.target.closest(".dot")) return;
      const size = area.getBoundingClientRect();
      const found = nearest(100 * (event.clientX - size.left) / size.width, 100 * (event.clientY - size.top) / size.height, size);
      if (found.distance > 60) return hide();
      const line = lines[found.index];
      const at = `${line.dataset.name}: ${number(toY(1 - found.y / 100))} at ${area.dataset.xName} ${number(toX(found.x / 100))}`;
      mark(line.dataset.key ?? "");
      all("g.line", area).forEach(each => each.classList.toggle("is-near", each === line));
      show(details(line.dataset.key, at), size.left + size.width * found.x / 100, size.top + size.height * found.y / 100);
    });
    area.addEventListener("pointerleave", event => {
      if (event.pointerType !== "touch") hide();
      lines.forEach(line => line.classList.remove("is-near"));
    });
  }
  addEventListener("scroll", () => { if (!document.activeElement?.matches(".dot")) hide(); }, { passive: true });
})();
