/**
 * SIGUSR1 opens node's debugger on a port of this machine: whoever may send it, and reach the port,
 * runs what they like. An ssh client may send it to a session without a forced command. Imported first
 * by a program that strangers start: from then on the signal does nothing, and one that came while
 * node itself was starting ends the program. (`--disable-sigusr1` would do it sooner; node 20 does not
 * know it, and refuses to start.)
 */
process.on("SIGUSR1", () => {});
// Not at once: node opens the port from another thread. A node without a debugger has no such module.
void import("node:inspector").then(
  ({ url }) => {
    if (url() !== undefined) process.exit(1);
  },
  () => {},
);
