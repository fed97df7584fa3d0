import { find, planted } from "#test/sim/planted";
for (const p of planted) {
  const t = performance.now();
  try {
    const f = await find(p, 500);
    console.log(
      ((performance.now() - t) / 1000).toFixed(0) + "s",
      p.name,
      "->",
      f?.seed,
      f?.violation.slice(0, 160),
    );
  } catch (e) {
    console.log("ERR", String(e).slice(0, 300));
  }
}
