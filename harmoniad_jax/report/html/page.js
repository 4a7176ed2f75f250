"use strict";

// The page is whole without this script: it adds sorting, the filter, the larger view
// and the mark of where the reader is.

// The key by which a row is sorted by a column: text, a number, or null if undefined.
const sortKey = (row, column) => {
  if (column === 0) return row.dataset.name;
  const { value } = row.cells[column].dataset;
  return value === "" ? null : Number(value);
};

const compare = (first, second) =>
  typeof first === "string"
    ? first.localeCompare(second, undefined, { numeric: true })
    : first - second;

function makeSortable(table) {
  const body = table.tBodies[0];
  // The first two headings span both rows of headings, so the lists follow each other.
  const headings = [...table.tHead.querySelectorAll("th[aria-sort]")];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const ascending = heading.ariaSort !== "ascending";
      for (const other of headings) other.ariaSort = "none";
      heading.ariaSort = ascending ? "ascending" : "descending";
      const rows = [...body.rows].map((row) => ({ row, key: sortKey(row, column) }));
      rows.sort((a, b) => {
        // What is undefined stays at the end in both orders.
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
        return ascending ? compare(a.key, b.key) : compare(b.key, a.key);
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}

// Without accents and capitals, so that "cafe" finds "Café".
const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

function makeFilter(field, matches) {
  const named = [...document.querySelectorAll("[data-name]")];
  const total = document.querySelectorAll("tbody tr").length;
  const update = () => {
    const wanted = plain(field.value.trim());
    for (const part of named) part.hidden = !plain(part.dataset.name).includes(wanted);
    const shown = document.querySelectorAll("tbody tr:not([hidden])").length;
    matches.textContent = wanted ? `${shown} of ${total} classes` : "";
  };
  field.addEventListener("input", update);
  // Browsers bring back what was typed when a page is loaded again.
  update();
}

function makeLargerView(dialog) {
  const part = (id) => document.getElementById(id);
  let links = [];
  let place = 0;

  const show = (to) => {
    place = (to + links.length) % links.length;
    const link = links[place];
    part("large").src = link.href;
    part("large").alt = link.querySelector("img").alt;
    part("large-title").textContent = link.dataset.title;
    part("large-about").textContent = link.dataset.about;
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.view");
    // With a modifier the link opens as links do, in a tab of its own.
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    links = [...link.closest(".gallery").querySelectorAll("a.view")];
    show(links.indexOf(link));
    dialog.showModal();
    // Itself, not its first button: what was chosen is a picture.
    dialog.focus();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(place - 1);
    if (event.key === "ArrowRight") show(place + 1);
  });
  part("before").addEventListener("click", () => show(place - 1));
  part("after").addEventListener("click", () => show(place + 1));
  part("close").addEventListener("click", () => dialog.close());
  // Back to the picture that was looked at last, not to the one it began with.
  dialog.addEventListener("close", () => links[place].focus());
}

function markCurrent(nav) {
  const links = new Map();
  for (const link of nav.querySelectorAll("a")) links.set(link.hash.slice(1), link);
  const list = nav.querySelector("ul");
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const link = links.get(target.id);
        if (!link) continue;
        if (!isIntersecting) {
          link.removeAttribute("aria-current");
          continue;
        }
        link.setAttribute("aria-current", "true");
        // Only the list is scrolled, never the page.
        const { left, right, top, bottom } = link.getBoundingClientRect();
        const frame = list.getBoundingClientRect();
        if (left < frame.left || right > frame.right) list.scrollLeft += left - frame.left;
        if (top < frame.top || bottom > frame.bottom) list.scrollTop += top - frame.top;
      }
    },
    // A line at a third of the height: one section at most crosses it.
    { rootMargin: "-33% 0px -66% 0px" },
  );
  for (const section of document.querySelectorAll("section")) observer.observe(section);
}

for (const table of document.querySelectorAll("table")) makeSortable(table);
makeFilter(document.getElementById("filter"), document.getElementById("matches"));
makeLargerView(document.querySelector("dialog"));
markCurrent(document.querySelector("nav"));
