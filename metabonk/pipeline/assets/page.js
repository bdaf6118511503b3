// What a rendered notebook does: theme, copying of code, figures. Used by the site and by the report of a run.
"use strict";
{
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const themes = ["system", "light", "dark"];

  // Theme: as the system has it until the reader chooses; the choice is remembered.
  const remembered = () => { try { return localStorage.getItem("theme") || "system"; } catch { return "system"; } };
  const setTheme = name => {
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
    try { localStorage.setItem("theme", name); } catch { /* a page opened from a disk may have no memory */ }
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.setAttribute("aria-label", `Theme: ${name}. Change it`);
      button.title = `Theme: ${name}`;
      button.dataset.now = name;
      if (!button.firstElementChild) button.textContent = `Theme: ${name}`;
    }
    drawFigures();
  };

  // Figures: plotly keeps the data, this page gives the colours.
  const colour = name => {
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  };
  const template = () => {
    const ink = colour("ink"), line = colour("line"), mute = colour("mute"), see = colour("see"), hear = colour("hear");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true, title: { standoff: 8 } };
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    const scale = dark
      ? [[0, "#15181b"], [0.3, "#1d4a43"], [0.6, "#6bcfb6"], [0.85, "#f2c38f"], [1, "#fff4e2"]]
      : [[0, "#fcfbf8"], [0.25, "#b5ddcf"], [0.55, "#2b8a74"], [0.8, "#a8480f"], [1, "#4a1d04"]];
    const bar = { outlinewidth: 0, thickness: 12, tickcolor: line };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: [see, hear, colour("code-name"), mute, "#b0893c", "#7d5fa8"],
        font: { family: getComputedStyle(root).getPropertyValue("--head"), color: ink, size: 13 },
        title: { font: { size: 15 }, x: 0, xref: "paper", xanchor: "left" }, margin: { l: 56, r: 16, t: 44, b: 48 }, xaxis: axis, yaxis: axis,
        scene: { xaxis: axis, yaxis: axis, zaxis: axis }, coloraxis: { colorbar: bar },
        colorscale: { sequential: scale }, legend: { bgcolor: "rgba(0,0,0,0)" },
        hoverlabel: { bgcolor: colour("raised"), bordercolor: line, font: { color: ink } },
      },
      data: { heatmap: [{ colorscale: scale, colorbar: bar }], contour: [{ colorscale: scale, colorbar: bar }] },
    };
  };
  const drawFigures = () => {
    if (!window.Plotly) return;
    for (const place of document.querySelectorAll(".plotly-figure")) {
      place.spec ??= JSON.parse(place.querySelector("script").textContent);
      const { data, layout } = structuredClone(place.spec);
      Plotly.react(place, data, { ...layout, template: template() }, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  };

  // Code: a button that copies it.
  const addCopyButtons = () => {
    for (const block of document.querySelectorAll("div.sourceCode")) {
      const button = Object.assign(document.createElement("button"), { className: "copy", type: "button", textContent: "Copy" });
      button.setAttribute("aria-label", "Copy this code");
      button.addEventListener("click", async () => {
        try { await navigator.clipboard.writeText(block.querySelector("code").innerText); button.textContent = "Copied"; }
        catch { button.textContent = "Select and copy"; getSelection().selectAllChildren(block.querySelector("code")); }
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      block.append(button);
    }
  };

  const start = () => {
    setTheme(remembered());
    addCopyButtons();
    for (const button of document.querySelectorAll("[data-theme-switch]"))
      button.addEventListener("click", () => setTheme(themes[(themes.indexOf(remembered()) + 1) % 3]));
    system.addEventListener("change", drawFigures);
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start); else start();
}
