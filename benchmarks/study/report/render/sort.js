// A click on a heading sorts its table: ascending, descending, as it was. A tbody is a variant with its components.
for (const table of document.querySelectorAll("table")) {
  const groups = [...table.tBodies];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "none" }[heading.ariaSort] ?? "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      if (next !== "none") heading.setAttribute("aria-sort", next);
      table.append(...(next === "none" ? groups : sorted(groups, column, next === "descending" ? -1 : 1)));
    });
  });
}

function sorted(groups, column, direction) {
  const value = (group) => group.rows[0].cells[column].dataset.value;
  const known = groups.filter((group) => value(group) !== undefined);
  const numeric = known.every((group) => value(group).trim() !== "" && Number.isFinite(Number(value(group))));
  const compare = numeric
    ? (a, b) => Number(value(a)) - Number(value(b))
    : (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true });
  const unknown = groups.filter((group) => value(group) === undefined);
  return [...known.sort((a, b) => direction * compare(a, b)), ...unknown];
}
