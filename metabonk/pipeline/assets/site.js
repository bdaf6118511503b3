// The frame of the site: search, menu, contents that follow the reader, folds that open for a link.
"use strict";
{
  const root = document.documentElement.dataset.root;

  // Search. The index is a script, so that it also loads from a disk.
  const search = () => {
    const dialog = document.querySelector("dialog.search");
    const input = dialog.querySelector("input"), list = dialog.querySelector("ol");
    let chosen = -1;

    let loaded;
    const script = name => new Promise((done, failed) => {
      const script = Object.assign(document.createElement("script"), { src: `${root}assets/${name}`, onload: done, onerror: failed });
      document.head.append(script);
    });
    const load = async () => {
      await Promise.all(["minisearch.js", "find.js", "search.js"].map(script));
      window.siteSearch = await makeSearch(window.searchIndex);
    };

    const marked = (text, words) => {
      const span = document.createDocumentFragment();
      const pattern = new RegExp(`(${words.map(w => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
      text.split(pattern).forEach((part, i) => span.append(i % 2 ? Object.assign(document.createElement("mark"), { textContent: part }) : part));
      return span;
    };
    const choose = index => {
      const items = [...list.querySelectorAll("[role=option]")];
      chosen = items.length ? (index + items.length) % items.length : -1;
      items.forEach((item, i) => item.setAttribute("aria-selected", String(i === chosen)));
      if (chosen >= 0) { input.setAttribute("aria-activedescendant", items[chosen].id); items[chosen].scrollIntoView({ block: "nearest" }); }
      else input.removeAttribute("aria-activedescendant");
    };
    const fold = text => text.toLowerCase().normalize("NFKD").replace(/[\u0300-\u036f]/g, "");
    const show = () => {
      if (!window.siteSearch) return;
      const query = input.value.trim();
      list.replaceChildren(...siteSearch(query).map(({ entry: [address, kind, title, page, text], terms }, i) => {
        const words = [...terms].sort((a, b) => b.length - a.length);
        const item = Object.assign(document.createElement("li"), { id: `found-${i}`, className: kind });
        item.setAttribute("role", "option");
        const places = words.map(word => fold(text).indexOf(word)).filter(place => place >= 0);
        const at = Math.max(0, Math.min(...places, text.length) - 40) * (places.length > 0);
        const link = Object.assign(document.createElement("a"), { href: root + address, tabIndex: -1 });
        const name = document.createElement("b"), where = document.createElement("span"), line = document.createElement("small");
        name.append(marked(title, words));
        where.textContent = page || "page";
        line.append(marked((at ? "… " : "") + text.slice(at, at + 150), words));
        link.append(where, name, line);
        link.addEventListener("click", () => dialog.close());
        item.append(link);
        return item;
      }));
      if (query && !list.children.length)
        list.append(Object.assign(document.createElement("li"), { className: "nothing", textContent: `No page has “${query}”.` }));
      input.setAttribute("aria-expanded", String(list.children.length > 0));
      choose(0);
    };
    const open = async () => {
      if (!dialog.open) dialog.showModal();
      input.select();
      await (loaded ??= load());
      show();
    };
    input.addEventListener("input", show);
    input.addEventListener("keydown", event => {
      if (event.key === "ArrowDown") { choose(chosen + 1); event.preventDefault(); }
      else if (event.key === "ArrowUp") { choose(chosen - 1); event.preventDefault(); }
      else if (event.key === "Enter" && chosen >= 0) { event.preventDefault(); list.children[chosen].querySelector("a").click(); }
    });
    dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
    document.querySelector(".find").addEventListener("click", open);
    addEventListener("keydown", event => {
      const typing = /^(input|textarea|select)$/i.test(document.activeElement?.tagName) || document.activeElement?.isContentEditable;
      if ((event.key === "/" && !typing) || (event.key === "k" && (event.ctrlKey || event.metaKey))) { event.preventDefault(); open(); }
    });
  };

  // Menu of the chapters, on a narrow screen.
  const menu = () => {
    const button = document.querySelector(".menu"), chapters = document.querySelector(".chapters");
    const set = open => { chapters.classList.toggle("open", open); button.setAttribute("aria-expanded", String(open)); document.body.style.overflow = open ? "hidden" : ""; };
    button.addEventListener("click", () => set(!chapters.classList.contains("open")));
    addEventListener("keydown", event => { if (event.key === "Escape" && chapters.classList.contains("open")) { set(false); button.focus(); } });
    const here = chapters.querySelector("[aria-current]");
    if (here && chapters.scrollHeight > chapters.clientHeight) chapters.scrollTop = here.offsetTop - chapters.clientHeight / 3;
  };

  // Contents: the heading that the reader has reached.
  const contents = () => {
    const links = new Map([...document.querySelectorAll(".contents a")].map(link => [decodeURIComponent(link.hash.slice(1)), link]));
    const headings = [...links.keys()].map(id => document.getElementById(id)).filter(Boolean);
    let current = null, waiting = false;
    const follow = () => {
      waiting = false;
      const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 4;
      const reached = headings.filter(heading => heading.offsetParent && heading.getBoundingClientRect().top < 120);
      const now = atEnd && scrollY > 0 ? headings.at(-1) : reached.at(-1);
      const link = now ? links.get(now.id) : null;
      if (link === current) return;
      current?.removeAttribute("aria-current");
      link?.setAttribute("aria-current", "true");
      current = link;
      const box = document.querySelector(".contents");
      if (link && box) box.scrollTop = link.offsetTop - box.clientHeight / 2;
    };
    addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(follow); } }, { passive: true });
    follow();
  };

  // A link to a method opens the fold that holds it.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let fold = target.closest("details:not([open])"); fold; fold = fold.parentElement.closest("details:not([open])")) fold.open = true;
    target.scrollIntoView();
  };

  addEventListener("DOMContentLoaded", () => { search(); menu(); contents(); unfold(); });
  addEventListener("hashchange", unfold);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(fold => { fold.open = true; }));
}
