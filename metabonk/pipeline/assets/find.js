// What a search finds, in order: full text by MiniSearch (BM25 with prefixes and typos), guides before code.
"use strict";
{
  const idle = new Set("a an and are as at be by can do does for from how i in is it its me my of on one or own the there this to use what when where which with".split(" "));
  const fold = text => text.toLowerCase().normalize("NFKD").replace(/[\u0300-\u036f]/g, "");
  const stem = word => word.length > 6 ? word.replace(/(ing|ed|s)$/, "") : word.length > 3 ? word.replace(/([^s])s$/, "$1") : word;

  // Words as they stand, and the parts of names: write_atomic is also write and atomic, DiskFull also Disk and Full.
  const split = text => text.match(/[\p{L}\p{N}_]+/gu) ?? [], known = new Map();
  const term = word => { const folded = fold(word); return idle.has(folded) ? null : stem(folded); };
  const terms = word => {
    if (!known.has(word)) {
      const parts = word.match(/\p{Lu}?[\p{Ll}\p{N}]+|\p{Lu}+(?!\p{Ll})/gu) ?? [];
      known.set(word, [...new Set([word, ...parts].map(term))].filter(Boolean));
    }
    return known.get(word);
  };

  // Guides first, then chapters, then names; a name is first where it is what was typed.
  const weight = ([address, kind, title]) => {
    const guide = /^(tutorial|howto)\//.test(address) ? 3 : /^(index|reference\/)/.test(address) ? 1.5 : /^stages\//.test(address) ? 0.6 : 1;
    return guide * { page: 2, heading: 1, symbol: 0.7 }[kind];
  };

  window.makeSearch = async entries => {
    const index = new MiniSearch({ fields: ["title", "page", "text"], tokenize: split, processTerm: terms });
    await index.addAllAsync(entries.map(([, , title, page, text], id) => ({ id, title, page, text })), { chunkSize: 200 });
    const spelt = new Set([...known.values()].flat());
    const weights = entries.map(weight), names = entries.map(([, kind, title]) => kind === "symbol" ? [fold(title), fold(title.split(".").pop())] : []);

    // The best thirty entries, at most two of a page, each with the words in which it was found.
    return (query, most = 30) => {
      const typed = fold(query).replace(/[`()\s]/g, "");
      const found = combineWith => index.search(query, {
        combineWith, boost: { title: 4, page: 2 }, weights: { prefix: 0.6, fuzzy: 0.3 },
        processTerm: term, prefix: word => word.length > 2, fuzzy: word => word.length > 3 && !spelt.has(word) ? 1 : 0,
        boostDocument: id => weights[id] * (names[id].includes(typed) ? 100 : 1),
      });
      const all = found("AND"), whole = new Set(all.map(hit => hit.id));
      const hits = [...all, ...found("OR").filter(hit => !whole.has(hit.id))], seen = new Map();
      return hits.filter(({ id }) => {
        const page = entries[id][0].split("#")[0], before = seen.get(page) ?? 0;
        seen.set(page, before + 1);
        return before < 2;
      }).slice(0, most).map(({ id, terms }) => ({ entry: entries[id], terms }));
    };
  };
}
