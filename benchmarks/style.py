"""The report's style sheet: light and dark, for a screen of any width and for paper."""

__all__ = ["STYLE"]

STYLE = """\
:root {
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
  --paper: #ffffff; --page: #f5f6f8; --ink: #1c2430; --muted: #5d6878; --grid: #e3e7ed; --rule: #dde2e9;
  --ours: #0b7a75; --peer: #a9b4c2; --floor: #7b8797; --bad: #b3261e;
  --tint1: #b45f06; --tint2: #6d4aa8; --tint3: #a33b56; --tint4: #4a6b8a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171c24; --page: #0f1319; --ink: #e6eaf0; --muted: #9aa6b6; --grid: #2a323d; --rule: #2a323d;
    --ours: #3fd0c5; --peer: #566275; --floor: #8f9bab; --bad: #ff8a80;
    --tint1: #f0a44b; --tint2: #b79bf0; --tint3: #f08ba3; --tint4: #8fb4d9;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--font); }
header, main { max-width: 74rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 4rem; padding-bottom: 1.6rem; position: relative; }
.brand { margin: 0; color: var(--ours); font-weight: 700; letter-spacing: .02em; }
h1 { font-size: clamp(2.2rem, 5vw, 3.6rem); line-height: 1.05; letter-spacing: -.03em; margin: .3rem 0 1rem; }
h2 { font-size: 1.9rem; letter-spacing: -.02em; line-height: 1.15; margin: 0 0 .3rem; }
h3 { font-size: 1.08rem; line-height: 1.35; margin: 0 0 .25rem; }
.lead { color: var(--muted); font-size: 1.15rem; margin: 0 0 1.2rem; max-width: 44rem; }
.tally { font-size: 1.1rem; margin: 0 0 .4rem; }
.tally b { color: var(--ours); font-size: 1.9rem; letter-spacing: -.02em; }
.made, .note { color: var(--muted); font-size: .875rem; margin: .4rem 0 0; }
nav {
  position: sticky; top: 0; z-index: 2; display: flex; gap: 1.3rem; overflow-x: auto; white-space: nowrap;
  padding: .75rem max(1.5rem, calc((100vw - 74rem) / 2 + 1.5rem)); background: var(--page);
  border-bottom: 1px solid var(--rule); font-size: .92rem;
}
a { color: inherit; text-decoration-color: var(--peer); text-underline-offset: .2em; }
nav a { text-decoration: none; color: var(--muted); }
nav a:hover, a:hover { color: var(--ours); }
section { padding: 3.2rem 0 .5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 33rem), 1fr)); gap: 1.25rem; }
figure {
  margin: 0; padding: 1.4rem 1.5rem 1rem; background: var(--paper); border: 1px solid var(--rule);
  border-radius: 12px; display: flex; flex-direction: column;
}
.answer { margin: 0 0 .9rem; color: var(--muted); font-size: .95rem; }
.broad { grid-column: 1 / -1; }
.plot svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; }
details { margin-top: .5rem; font-size: .875rem; }
#targets details { font-size: inherit; margin-top: 1rem; }
summary { cursor: pointer; color: var(--muted); width: max-content; }
summary:focus-visible, a:focus-visible { outline: 2px solid var(--ours); outline-offset: 3px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; width: 100%; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); vertical-align: baseline; }
th { font-weight: 600; color: var(--muted); }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
tr.ours th, tr.ours td { color: var(--ours); font-weight: 600; }
small { color: var(--muted); font-weight: 400; white-space: nowrap; }
.files a { margin-right: .8rem; color: var(--muted); }
#conditions td, .targets td:nth-child(2), .targets th:nth-child(2) { text-align: left; }
.targets { background: var(--paper); border: 1px solid var(--rule); border-radius: 12px; border-spacing: 0; }
.targets td, .targets th { padding: .5rem .9rem; }
.targets td:first-child { padding-left: 1.2rem; }
.targets td:last-child { padding-right: 1.2rem; color: var(--muted); font-size: .9rem; white-space: nowrap; }
.targets td:nth-child(2) { min-width: 17rem; }
.targets small { white-space: normal; }
.targets .number { white-space: nowrap; }
.mark { font-size: .85rem; font-weight: 600; }
.yes .mark { color: var(--ours); } .no .mark { color: var(--bad); }
.yes .mark::before { content: "\\25CF\\00A0\\00A0"; } .no .mark::before { content: "\\25CB\\00A0\\00A0"; }
.versions { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; padding: 0; color: var(--muted); }
.versions b { color: var(--ink); font-weight: 600; }
@media print { nav { display: none; } figure { break-inside: avoid; } body { background: none; } }
"""
