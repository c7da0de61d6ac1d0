"use strict";
// A list too long for one page: it is narrowed, put in order and shown in parts.
//
// What is shown stands in the page as data; a <template> says how one item looks. Text goes in as text, never as markup.
// The choices stand in the address (#class=3&sort=usage&part=2), so that other pages can link to them;
// #prototype=17 shows the item with that id and marks it.
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const PART = 48; // items shown at once
  const MINUS = "\u2212";

  const items = JSON.parse(source.textContent);
  const form = document.getElementById("choices");
  const gallery = document.getElementById("gallery");
  const list = document.getElementById("items");
  const template = document.getElementById("item");
  const status = document.getElementById("shown");
  const steps = [...gallery.querySelectorAll("button[data-step]")];
  const selects = [...form.querySelectorAll("select")];
  const { anchor, what, pictures } = gallery.dataset;

  let part = 0;

  // "{weight:3}" becomes the item's weight with three digits, "{class}" its class
  function filled(pattern, item) {
    return pattern.replace(/\{(\w+)(?::(\d))?\}/g, (whole, name, digits) => {
      const value = item[name];
      return digits === undefined ? String(value) : value.toFixed(Number(digits)).replace("-", MINUS);
    });
  }

  function isSet(value) {
    return Array.isArray(value) ? value.length > 0 : Boolean(value);
  }

  function setPicture(image, [name, width, height]) {
    image.src = pictures + name;
    image.width = width;
    image.height = height;
  }

  // each kind of data-* attribute that a template may have, and what it does to its element
  const rules = {
    if: (node, name, item) => isSet(item[name]) || node.remove(),
    unless: (node, name, item) => !isSet(item[name]) || node.remove(),
    each: (node, name, item) => {
      const inner = node.querySelector("template");
      inner.replaceWith(...item[name].map((one) => made(inner, one)));
    },
    text: (node, pattern, item) => { node.textContent = filled(pattern, item); },
    class: (node, pattern, item) => node.classList.add(filled(pattern, item)),
    title: (node, pattern, item) => { node.title = filled(pattern, item); },
    alt: (node, pattern, item) => { node.alt = filled(pattern, item); },
    href: (node, pattern, item) => node.setAttribute("href", filled(pattern, item)),
    picture: (node, name, item) => setPicture(node, item[name]),
  };

  function made(from, item) {
    const fragment = from.content.cloneNode(true);
    for (const [rule, apply] of Object.entries(rules)) {
      for (const node of fragment.querySelectorAll(`[data-${rule}]`)) {
        const pattern = node.dataset[rule];
        delete node.dataset[rule];
        apply(node, pattern, item);
      }
    }
    return fragment;
  }

  // items without a value come last, either way; equal ones stay in the order of the data
  function compare(field, sign) {
    return (one, other) => {
      const a = one[field], b = other[field];
      if (a === null || b === null) return (a === null) - (b === null);
      return a === b ? 0 : sign * (a < b ? -1 : 1);
    };
  }

  function chosen() {
    let found = items;
    for (const select of selects) {
      const { field, flag } = { ...select.dataset, ...select.selectedOptions[0].dataset };
      if (select.name === "sort" || !select.value) continue;
      found = found.filter((item) => (flag ? isSet(item[flag]) : String(item[field]) === select.value));
    }
    const { field, sign } = form.elements.sort.selectedOptions[0].dataset;
    return field ? [...found].sort(compare(field, Number(sign))) : found;
  }

  function show(id) {
    let found = chosen();
    if (id !== null && !found.some((item) => String(item.id) === id)) {
      form.reset();
      found = chosen();
    }
    const num = Math.max(1, Math.ceil(found.length / PART));
    const position = found.findIndex((item) => String(item.id) === id);
    part = position >= 0 ? Math.floor(position / PART) : Math.min(Math.max(part, 0), num - 1);
    const start = part * PART;
    const shown = found.slice(start, start + PART);
    list.replaceChildren(...shown.map((item) => made(template, item)));
    for (const button of steps) {
      const goal = part + Number(button.dataset.step);
      button.disabled = goal < 0 || goal >= num;
    }
    const all = found.length === items.length ? "" : `, chosen from ${items.length}`;
    status.textContent = found.length
      ? `${start + 1}\u2013${start + shown.length} of ${found.length} ${what}${all}`
      : `none of ${items.length} ${what} is like this`;
    if (position >= 0) mark(list.children[position - start]);
  }

  function mark(element) {
    element.classList.add("marked");
    element.setAttribute("aria-current", "true");
    element.tabIndex = -1;
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: "center" });
  }

  function fromAddress() {
    const state = new URLSearchParams(location.hash.slice(1));
    form.reset();
    for (const select of selects) {
      const value = state.get(select.name);
      if (value !== null && [...select.options].some((option) => option.value === value)) select.value = value;
    }
    part = Number.parseInt(state.get("part"), 10) - 1 || 0;
    show(state.get(anchor));
  }

  function toAddress() {
    const state = new URLSearchParams();
    for (const select of selects) if (select.value) state.set(select.name, select.value);
    if (part) state.set("part", part + 1);
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }

  form.addEventListener("change", () => {
    part = 0;
    show(null);
    toAddress();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of steps) {
    button.addEventListener("click", () => {
      part += Number(button.dataset.step);
      show(null);
      toAddress();
      gallery.scrollIntoView({ block: "start" });
      // a disabled button would lose the focus, and one below the list is out of sight now
      const isBelow = list.compareDocumentPosition(button) & Node.DOCUMENT_POSITION_FOLLOWING;
      if (button.disabled || isBelow) status.focus({ preventScroll: true });
    });
  }
  window.addEventListener("hashchange", fromAddress);
  status.tabIndex = -1;
  form.hidden = gallery.hidden = false;
  fromAddress();
})();
