"use strict";
(() => {
  const all = (query, within = document) => [...within.querySelectorAll(query)];

  // Tables sort by the column whose head is pressed: numbers by their exact value, the rest as text, empty cells last.
  for (const table of all("table.sorts")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent;
      };
      const numeric = all("tbody tr", table).some((row) => row.cells[column].dataset.v !== undefined);
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!numeric) return (up ? 1 : -1) * String(x).localeCompare(String(y));
        if (typeof x === "string" || typeof y === "string") return (typeof x === "string") - (typeof y === "string");
        return (up ? 1 : -1) * (x - y);
      };
      table.tBodies[0].append(...all("tbody tr", table).sort(compare));
    }));
  }

  const save = (name, content, type) => {
    const link = document.createElement("a");
    link.href = content instanceof Blob ? URL.createObjectURL(content) : URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const cells = (table) => [...table.rows].map((row) => [...row.cells]);
  const escaped = { "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}", "\\": "\\textbackslash{}", "<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$", "−": "$-$", "–": "--" };
  const forms = {
    csv(table) {
      const quote = (text) => (/[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);
      const value = (cell) => quote(cell.dataset.v ?? (cell.textContent === "–" ? "" : cell.textContent));
      return cells(table).map((row) => row.map(value).join(",")).join("\n") + "\n";
    },
    md(table) {
      const [head, ...rows] = cells(table);
      const line = (row) => "| " + row.map((c) => c.textContent.replaceAll("|", "\\|")).join(" | ") + " |\n";
      return line(head) + "|" + head.map((c) => (c.classList.contains("n") ? "---:|" : "---|")).join("") + "\n" + rows.map(line).join("");
    },
    tex(table) {
      const [head, ...rows] = cells(table);
      const text = (cell) => cell.textContent.replace(/[&%$#_{}~^\\<>±−–]/g, (c) => escaped[c]);
      const line = (row) => row.map(text).join(" & ") + " \\\\\n";
      const columns = head.map((c) => (c.classList.contains("n") ? "r" : "l")).join("");
      return `\\begin{tabular}{${columns}}\n\\toprule\n${line(head)}\\midrule\n${rows.map(line).join("")}\\bottomrule\n\\end{tabular}\n`;
    },
  };

  // A figure leaves the page with the colours that it has here.
  const standalone = (svg) => {
    const copy = svg.cloneNode(true);
    const [from, to] = [all("*", svg), all("*", copy)];
    from.forEach((mark, i) => {
      const style = getComputedStyle(mark);
      for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray"]) to[i].style.setProperty(name, style.getPropertyValue(name));
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.style.background = getComputedStyle(document.body).backgroundColor;
    copy.style.fontFamily = "system-ui, sans-serif";
    return new XMLSerializer().serializeToString(copy);
  };
  const drawn = (svg, name) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      const { width, height } = svg.viewBox.baseVal;
      canvas.width = 2 * width;
      canvas.height = 2 * height;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(name, blob));
    };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(standalone(svg));
  };

  for (const tools of all(".tools")) {
    tools.hidden = false;
    tools.addEventListener("click", ({ target }) => {
      const form = target.dataset.form;
      const what = document.getElementById(tools.dataset.of);
      if (form === "svg") save(what.id + ".svg", standalone(what), "image/svg+xml");
      else if (form === "png") drawn(what, what.id + ".png");
      else if (form) save(`${what.id}.${form}`, forms[form](what), "text/plain");
    });
  }

  // Of the panels of a group, the chosen one is shown.
  for (const select of all("select[data-group]")) {
    const show = () => all(`[data-panel="${select.dataset.group}"]`).forEach((panel) => { panel.hidden = panel.dataset.key !== select.value; });
    select.closest(".picks").hidden = false;
    select.addEventListener("change", show);
    show();
  }

  // The heatmap takes the values of the chosen codec and domain.
  const heat = document.getElementById("heat");
  if (heat) {
    const { values, low, high } = JSON.parse(document.getElementById("heat-data").textContent);
    const [codec, domain] = [document.getElementById("heat-codec"), document.getElementById("heat-domain")];
    const written = (v) => (v === 0 ? "0" : v < 1e-4 || v >= 1000 ? v.toExponential(1) : String(Number(v.toPrecision(2))));
    const paint = () => {
      const chosen = values[codec.value][domain.value];
      all("td", heat).forEach((cell, i) => {
        const value = chosen[i];
        const heat = value > 0 ? Math.min(1, Math.max(0, Math.log(value / low) / Math.log(high / low))) : 0;
        cell.style.setProperty("--t", value === null ? "0%" : `${(6 + 60 * heat).toFixed(0)}%`);
        cell.textContent = value === null ? "" : written(value);
        cell.title = value === null ? "" : `${cell.dataset.name}: ${written(value)} nats per token`;
      });
      document.getElementById("heat-words").textContent = worst(chosen);
    };
    const worst = (chosen) => {
      const named = all("td", heat).map((cell, i) => [chosen[i], cell.dataset.name]).filter(([v]) => v !== null);
      named.sort((a, b) => b[0] - a[0]);
      return `Most is lost by ${named.slice(0, 3).map(([v, name]) => `${name} (${written(v)})`).join(", ")}.`;
    };
    codec.closest(".picks").hidden = false;
    [codec, domain].forEach((s) => s.addEventListener("change", paint));
    paint();
  }
})();
