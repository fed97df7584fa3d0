/**
 * A TCP proxy whose far side is some milliseconds away, for kernels without netem:
 * `node delay.ts PORT MILLISECONDS` prints its own port. Each way takes half of them.
 */
import * as net from "node:net";

const [port, round] = process.argv.slice(2).map(Number) as [number, number];
/** Far more than ssh's window of 2 MiB, so never what decides. */
const limit = 64 * 1_048_576;

const carry = (from: net.Socket, to: net.Socket): void => {
  let held = 0;
  from.on("data", (bytes) => {
    held += bytes.length;
    if (held > limit) from.pause();
    setTimeout(() => {
      to.write(bytes);
      held -= bytes.length;
      if (held <= limit) from.resume();
    }, round / 2);
  });
  from.on("end", () => setTimeout(() => to.end(), round / 2));
  from.on("error", () => to.destroy());
};

const server = net.createServer({ allowHalfOpen: true, noDelay: true }, (near) => {
  const far = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
  carry(near, far);
  carry(far, near);
});
server.listen(0, "127.0.0.1", () => {
  process.stdout.write(`${(server.address() as net.AddressInfo).port}\n`);
});
process.on("disconnect", () => process.exit());
