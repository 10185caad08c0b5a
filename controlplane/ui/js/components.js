// Parts that several views use.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";
import { Problem } from "./api.js";

const TONE = {
  Ready: "good",
  Degraded: "bad",
  Failed: "bad",
  Unreachable: "bad",
  Stopped: "bad",
  Unloaded: "idle",
  "Not deployed": "none",
};

export function Phase({ phase }) {
  return html`<span class=${`phase ${TONE[phase] ?? "busy"}`}><i aria-hidden="true"></i>${phase}</span>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><p class="empty-title">${title}</p>${children && html`<p>${children}</p>`}</div>`;
}

export function ErrorBox({ problem }) {
  if (!problem) return null;
  return html`<div class="error" role="alert"><strong>${problem.title || "Error"}</strong> ${problem.message}</div>`;
}

export function Field({ label, children, wide }) {
  return html`<div class=${wide ? "field wide" : "field"}><dt>${label}</dt><dd>${children ?? "–"}</dd></div>`;
}

const SHOWN = 4000;

/** Text that can be copied with one click. Of a long text only the beginning is shown; all of it is copied. */
export function Copyable({ text, label = "Copy" }) {
  const [copied, setCopied] = useState(false);
  const more = text.length - SHOWN;
  const copy = async () => {
    await navigator.clipboard?.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<div class="copyable">
    <pre tabindex="0">${more > 0 ? `${text.slice(0, SHOWN)}\n… ${more} more characters` : text}</pre>
    <button class="small" onClick=${copy}>${copied ? "Copied" : label}</button>
  </div>`;
}

const NOTHING = { keys: null, value: null, problem: null };

/**
 * Data that a component reads itself: [value, problem, reload]. Read again each `every` milliseconds, if given.
 * What was read with other keys is never returned.
 */
export function useData(read, keys, every) {
  const [found, setFound] = useState(NOTHING);
  const [turn, setTurn] = useState(0);
  const asked = JSON.stringify(keys);
  useEffect(() => {
    let current = true;
    const work = async () => {
      try {
        const value = await read();
        if (current) setFound({ keys: asked, value, problem: null });
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        if (current) setFound((before) => ({ keys: asked, value: before.keys === asked ? before.value : null, problem: error }));
      }
    };
    work();
    const timer = every ? setInterval(() => !document.hidden && work(), every) : null;
    return () => {
      current = false;
      clearInterval(timer);
    };
  }, [asked, turn]);
  const { value, problem } = found.keys === asked ? found : NOTHING;
  return [value, problem, () => setTurn((count) => count + 1)];
}

/** The time, each second: for ages and for what runs out. */
export function useNow(every = 1000) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}

/** A box for a table that may be wider than the window; it scrolls, by keyboard too. */
export function Scroll({ label, children }) {
  return html`<div class="scroll" role="region" aria-label=${label} tabindex="0">${children}</div>`;
}

export const ROW_PIXELS = 38;
const OVERSCAN = 6;

/**
 * A table that draws only the rows in view, whatever their number.
 * columns: [{ key, label, cell(row), className, sort }]; `href(row)` makes the first cell a link.
 */
export function VirtualTable({ label, columns, rows, keyOf, template, sort, onSort, empty, onVisible }) {
  const box = useRef(null);
  const [view, setView] = useState({ top: 0, height: 600 });
  useLayoutEffect(() => {
    const element = box.current;
    const measure = () => setView({ top: element.scrollTop, height: element.clientHeight });
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    element.addEventListener("scroll", measure, { passive: true });
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", measure);
    };
  }, []);
  const first = Math.max(0, Math.floor(view.top / ROW_PIXELS) - OVERSCAN);
  const last = Math.min(rows.length, Math.ceil((view.top + view.height) / ROW_PIXELS) + OVERSCAN);
  const shown = rows.slice(first, last);
  const visible = shown.map(keyOf).join("\n");
  useEffect(() => onVisible?.(shown), [visible]);
  const style = { gridTemplateColumns: template };
  return html`<div class="vtable" role="table" aria-label=${label} aria-rowcount=${rows.length + 1}>
    <div role="rowgroup" class="vhead">
      <div role="row" class="vrow" aria-rowindex="1" style=${style}>
        ${columns.map(
          (column) => html`<div
            role="columnheader"
            key=${column.key}
            class=${column.className}
            aria-sort=${sort?.key === column.key ? (sort.down ? "descending" : "ascending") : undefined}
          >
            ${column.sort && onSort
              ? html`<button class="plain" onClick=${() => onSort(column.key)}>
                  ${column.label}<span aria-hidden="true">${sort?.key === column.key ? (sort.down ? " ↓" : " ↑") : ""}</span>
                </button>`
              : column.label}
          </div>`,
        )}
      </div>
    </div>
    <div class="vbody" ref=${box} role="rowgroup" tabindex="0">
      ${rows.length === 0 && html`<div role="row"><div role="cell">${empty}</div></div>`}
      <div class="vspace" role="presentation" style=${{ height: `${rows.length * ROW_PIXELS}px` }}>
        <div class="vwindow" role="presentation" style=${{ transform: `translateY(${first * ROW_PIXELS}px)` }}>
          ${shown.map(
            (row, index) => html`<div role="row" class="vrow" key=${keyOf(row)} aria-rowindex=${first + index + 2} style=${style}>
              ${columns.map(
                (column) => html`<div role="cell" key=${column.key} class=${column.className}>${column.cell(row)}</div>`,
              )}
            </div>`,
          )}
        </div>
      </div>
    </div>
  </div>`;
}

/** A modal dialog; Escape and a click outside close it. */
export function Dialog({ title, onClose, children }) {
  const dialog = useRef(null);
  useEffect(() => {
    const element = dialog.current;
    element.showModal();
    const closed = () => onClose();
    element.addEventListener("close", closed);
    return () => element.removeEventListener("close", closed);
  }, []);
  const outside = (event) => event.target === dialog.current && dialog.current.close();
  return html`<dialog ref=${dialog} aria-label=${title} onClick=${outside}>
    <div class="dialog-body">
      <header>
        <h2>${title}</h2>
        <button class="plain close" aria-label="Close" onClick=${() => dialog.current.close()}>✕</button>
      </header>
      ${children}
    </div>
  </dialog>`;
}

export function Tabs({ tabs, current, hrefOf }) {
  return html`<nav class="tabs" aria-label="Sections">
    ${tabs.map(
      ([key, label]) => html`<a key=${key} href=${hrefOf(key)} aria-current=${key === current ? "page" : undefined}>${label}</a>`,
    )}
  </nav>`;
}

/** A line chart. points: [{ x, y|null }], oldest first; gaps stay gaps. */
export function LineChart({ label, points, format, height = 96 }) {
  const width = 480;
  const known = points.filter((point) => point.y !== null && point.y !== undefined);
  const top = Math.max(...known.map((point) => point.y), 0) * 1.1 || 1;
  const [from, to] = [points[0]?.x ?? 0, points.at(-1)?.x ?? 1];
  const x = (value) => ((value - from) / (to - from || 1)) * width;
  const y = (value) => height - 4 - (value / top) * (height - 8);
  let line = "";
  let pen = "M";
  for (const point of points) {
    if (point.y === null || point.y === undefined) pen = "M";
    else {
      line += `${pen}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`;
      pen = "L";
    }
  }
  const newest = known.at(-1);
  return html`<figure class="chart">
    <figcaption>
      <span>${label}</span><strong>${newest ? format(newest.y) : "–"}</strong>
    </figcaption>
    <svg viewBox=${`0 0 ${width} ${height}`} preserveAspectRatio="none" role="img" aria-label=${`${label}, newest ${newest ? format(newest.y) : "none"}`}>
      <line x1="0" x2=${width} y1=${height - 4} y2=${height - 4} class="axis" />
      <path d=${line} class="line" vector-effect="non-scaling-stroke" />
    </svg>
    <div class="chart-scale"><span>${known.length ? format(top / 1.1) : ""} at most</span><span>now</span></div>
  </figure>`;
}
