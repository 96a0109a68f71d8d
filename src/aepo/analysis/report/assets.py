"""This module holds the style and the script of the page.

Both are plain ASCII, because the content security policy of the page contains their hashes.
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --back: #fafafa; --faint: #5b5b5b; --rule: #d8d8d8; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --back: #161616; --faint: #a8a8a8; --rule: #3a3a3a; --card: #202020; }
}
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: var(--ink); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.faint, figcaption, caption { color: var(--faint); font-size: .9rem; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; }
tbody td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
td.number { text-align: right; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 1.5rem 0; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 1rem 0; } figure img { width: 100%; max-width: 56rem; background: #fff; border-radius: 6px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: .6rem; margin: .3rem 0 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; unicode-bidi: isolate; }
pre.prompt { margin-bottom: 0; border-style: dashed; color: var(--faint); }
@media (max-width: 1080px) {
  body { margin: 1rem auto; } h1 { font-size: 1.3rem; overflow-wrap: anywhere; } code { overflow-wrap: anywhere; }
  table, caption, tbody, tr { display: block; } thead, caption span { display: none; }
  tr { border: 1px solid var(--rule); border-radius: 6px; margin: .8rem 0; background: var(--card); }
  td, td.number { display: flex; justify-content: space-between; gap: 1rem; text-align: right; white-space: normal;
    overflow-wrap: anywhere; }
  td::before { content: attr(data-name); color: var(--faint); text-align: left; flex: none; }
  tr td:last-child { border-bottom: 0; } td[data-order=""] { display: none; }
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map(row => [row, row.cells[column].dataset.order]);
    rows.sort(([, a], [, b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return up ? order : -order;
    });
    body.append(...rows.map(([row]) => row));
  }));
}
"""
