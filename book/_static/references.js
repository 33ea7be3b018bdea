// docutils gives references a role that assistive programs no longer know, and so a list without items.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll('[role="list"] > [role="doc-biblioentry"]').forEach((entry) => entry.setAttribute("role", "listitem"));
});
