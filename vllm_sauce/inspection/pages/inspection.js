(() => {
  "use strict";
  const search = document.getElementById("search");
  const found = document.getElementById("found");
  const named = [...document.querySelectorAll("[data-name]")];
  const total = document.querySelectorAll("section[data-name]").length;
  const filter = () => {
    const words = search.value.trim().toLowerCase();
    let count = 0;
    for (const element of named) {
      const hit = element.dataset.name.toLowerCase().includes(words);
      element.hidden = !hit;
      if (hit && element.tagName === "SECTION") count += 1;
    }
    for (const group of document.querySelectorAll("nav .group")) {
      group.hidden = !group.querySelector("[data-name]:not([hidden])");
    }
    found.textContent = words ? `${count} of ${total} concepts` : `${total} concepts`;
  };
  if (search) {
    search.addEventListener("input", filter);
    filter();
  }
  const value = (row, column) => {
    const cell = row.children[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const column = [...head.parentNode.children].indexOf(head);
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        const order = typeof x === "number" ? x - y : x.localeCompare(y);
        return down ? -order : order;
      });
      body.append(...rows);
    });
  }
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details.print")) details.open = true;
  });
})();
