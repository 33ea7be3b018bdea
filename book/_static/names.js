// What the theme and docutils leave out for those who listen to a page.
document.addEventListener("DOMContentLoaded", () => {
  // The arrows that unfold the contents have no name.
  document.querySelectorAll(".has-children > details > summary").forEach((arrow) => {
    arrow.setAttribute("aria-label", `Pages under ${arrow.closest("li").querySelector("a").textContent.trim()}`);
  });
  // References have a role that assistive programs no longer know, which makes a list without items.
  document.querySelectorAll('[role="list"] > [role="doc-biblioentry"]').forEach((entry) => entry.setAttribute("role", "listitem"));
});
