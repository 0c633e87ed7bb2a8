// Asks the server of this page to simulate the very choice (serve.py), and shows its answer in place of the replay's.
"use strict";

async function exactly() {
  const choice = read(), { shards } = choice;
  delete choice.config;
  const status = byId("exact-status"), began = performance.now();
  byId("exact").disabled = true;
  status.textContent = "Simulating the step; some seconds to a minute …";
  try {
    const sent = JSON.stringify({ choice, config: choice.model === OWN ? byId("config").value : "" });
    const response = await fetch("estimate", { method: "POST", headers: { "Content-Type": "application/json" }, body: sent });
    const { answer, error } = await response.json();
    if (error) throw new Error(error);
    showVerdict(answer, choice);
    showBar(answer, choice);
    showFacts(answer, choice);
    status.textContent = `Simulated by peftbench estimate in ${round((performance.now() - began) / 1000)} s${shards > 1 ? `, one of ${shards} cards that share the model` : ""}.`;
  } catch (error) {
    status.textContent = `No answer: ${error.message}`;
  }
  byId("exact").disabled = false;
}

byId("exact").addEventListener("click", exactly);
form.addEventListener("input", () => { byId("exact-status").textContent = ""; });
