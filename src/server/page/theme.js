// Runs before the first paint, so that a chosen theme does not flash the other one.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("wayinfer.theme")) ?? "";
} catch {
  // Storage is blocked: the system's theme stays.
}
