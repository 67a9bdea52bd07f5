// In a page that is to be looked at: opens what is folded and tells the window around it what does not fit.
addEventListener("load", () => {
  const SLACK = 1; // pixel, of rounding
  const found = [];
  const told = (what, element) => found.push(`${what}: <${element.tagName.toLowerCase()}> ${element.textContent.slice(0, 60)}`);
  const look = (state) => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width + SLACK) told(`${state}, the page is wider than the window`, document.body);
    for (const element of document.body.querySelectorAll("*:not(script)")) {
      const box = element.getBoundingClientRect();
      if (!box.width || !box.height) continue;
      const picture = element.ownerSVGElement;
      if (picture) {
        if (element.tagName !== "text") continue; // the rest of a picture is clipped by its axes
        const frame = picture.getBoundingClientRect();
        if (box.left < frame.left - SLACK || box.right > frame.right + SLACK || box.top < frame.top - SLACK ||
            box.bottom > frame.bottom + SLACK) told(`${state}, text beyond its picture`, element);
        continue;
      }
      if (width < 560 && element.closest("figure, .wide")) continue; // on a telephone pictures and wide tables may be pushed aside
      if (box.right > width + SLACK || box.left < -SLACK) told(`${state}, wider than the window`, element);
      const style = getComputedStyle(element);
      if (style.display !== "inline" && element.tagName !== "svg" &&
          (element.scrollWidth > element.clientWidth + SLACK || (style.overflowY !== "visible" &&
           element.scrollHeight > element.clientHeight + SLACK))) told(`${state}, clipped or scrolled`, element);
    }
  };
  look("folded");
  for (const details of document.querySelectorAll("details")) details.open = true;
  look("unfolded");
  const texts = [...document.querySelectorAll("figure text")].map((text) => text.getBoundingClientRect().height);
  const lead = document.querySelector("svg")?.getBoundingClientRect(), table = document.querySelector("table");
  parent.postMessage({
    name: document.documentElement.dataset.name, found, folded: document.querySelectorAll("details").length,
    smallest: Math.min(...texts, 99), above: !lead || lead.bottom <= table.getBoundingClientRect().top,
  }, "*");
});
