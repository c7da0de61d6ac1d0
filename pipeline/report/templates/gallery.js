"use strict";
// The gallery is a plain list by class; with a script it can be narrowed to a class and put in order.
(() => {
  const controls = document.getElementById("controls");
  const classChoice = document.getElementById("class-choice");
  const orderChoice = document.getElementById("order-choice");
  const shown = document.getElementById("shown");
  const inOrder = document.getElementById("in-order");
  const byClass = document.getElementById("by-class");
  const cards = [...byClass.querySelectorAll(".card")];
  const homes = new Map(cards.map((card) => [card, card.parentElement]));

  function compare(key, sign) {
    return (one, other) => {
      const a = one.dataset[key], b = other.dataset[key];
      if (a === "" || b === "") return (a === "") - (b === ""); // without a value: last, either way
      return sign * (Number(a) - Number(b));
    };
  }

  function show() {
    const chosen = cards.filter((card) => !classChoice.value || card.dataset.label === classChoice.value);
    const [key, sign] = orderChoice.value.split(" ");
    if (key) {
      inOrder.replaceChildren(...chosen.sort(compare(key, Number(sign))));
    } else {
      for (const card of cards) homes.get(card).append(card);
      for (const section of byClass.children) {
        section.hidden = classChoice.value !== "" && section.dataset.label !== classChoice.value;
      }
    }
    inOrder.hidden = !key;
    byClass.hidden = Boolean(key);
    shown.textContent = `${chosen.length} of ${cards.length} prototypes`;
  }

  controls.addEventListener("change", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  show();
})();
