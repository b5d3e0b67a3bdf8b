"""The style sheet of the page: light, dark and printed; one column on a phone."""

CSS = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #59626d; --line: #d5dae0; --ground: #ffffff;
  --panel: #f6f8fa; --right: #176f3b; --wrong: #b3261e; --shade: rgb(0 0 0 / .35); __LIGHT__ }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a3adb8; --line: #3a424c;
  --ground: #14181d; --panel: #1c2229; --right: #5cc98a; --wrong: #ff8f85; --shade: rgb(255 255 255 / .4);
  __DARK__ } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 1060px; color: var(--ink);
  background: var(--ground); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.about { font-size: 1.02rem; max-width: 50rem; margin: 0 0 .8rem; }
.lead { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: 0 0 .6rem; max-width: 50rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.warn { border-left: 4px solid var(--wrong); padding: .2rem .8rem; background: var(--panel); }
.plots { display: grid; gap: 1.2rem 1.6rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.plots.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
figure { margin: .6rem 0; max-width: 530px; break-inside: avoid; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg text { font-family: inherit !important; }
/* A table that is wider than the page shows it: a shadow lies at the edge beyond which there is more. */
.scroll { overflow-x: auto; margin: .6rem 0; background:
  linear-gradient(to right, var(--ground) 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--ground) 30%, transparent) right / 3rem 100% no-repeat local,
  radial-gradient(farthest-side at 0 50%, var(--shade), transparent) left / 1rem 100% no-repeat scroll,
  radial-gradient(farthest-side at 100% 50%, var(--shade), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td small { color: var(--soft); }
.overview small { display: block; }
.overview th, .overview td { vertical-align: top; }
.overview thead th { vertical-align: bottom; }
.config td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1rem; margin: .6rem 0; }
dt { font-weight: 600; } dd { margin: 0; max-width: 44rem; }
.example { border: 1px solid var(--line); border-radius: 6px; margin: .9rem 0; break-inside: avoid-page; }
.prompt { background: var(--panel); padding: .6rem .8rem; border-bottom: 1px solid var(--line);
  border-radius: 6px 6px 0 0; }
.chip { float: right; margin-left: .8rem; font-size: .8rem; color: var(--soft); border: 1px solid var(--line);
  border-radius: 1em; padding: 0 .6em; }
.columns { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); }
.columns > div { padding: .5rem .8rem; min-width: 0; }
.columns > div + div { border-left: 1px solid var(--line); }
.who { font-weight: 600; font-size: .92rem; } .who span.soft { font-weight: 400; }
ul.responses { list-style: none; margin: .3rem 0 0; padding: 0; }
.responses li { display: flex; gap: .5rem; align-items: baseline; padding: .12rem 0; }
.mark { flex: 0 0 1.1em; font-weight: 700; text-align: center; }
.mark.right { color: var(--right); } .mark.wrong { color: var(--wrong); } .mark.other { flex-basis: auto; }
.text { flex: 1 1 auto; min-width: 0; font: .84rem/1.4 ui-monospace, "DejaVu Sans Mono", Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; max-height: 14em; overflow-y: auto; }
.times { flex: 0 0 auto; color: var(--soft); font-size: .84rem; }
.empty { color: var(--soft); font-style: italic; }
@media (max-width: 700px) { .columns { grid-template-columns: minmax(0, 1fr); }
  .columns > div + div { border-left: 0; border-top: 1px solid var(--line); }
  .lead { font-size: 1.15rem; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  th, td { padding: .25rem .45rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --ground: #fff;
  --panel: #f4f4f4; --right: #176f3b; --wrong: #b3261e; __LIGHT__ }
  body { max-width: none; padding: 0; font-size: 10.5pt; } h2 { break-after: avoid; }
  .plots { grid-template-columns: 1fr 1fr; } .plots.small { grid-template-columns: 1fr 1fr 1fr; }
  .text { max-height: none; } }
"""
