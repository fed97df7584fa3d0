/** Runs a role as this process. */
import * as Cause from "effect/Cause";
import * as Effect from "effect/Effect";
import * as Exit from "effect/Exit";
import * as Runtime from "effect/Runtime";
import { writeSync } from "node:fs";
import { constants } from "node:os";

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * The role's value is the exit status. SIGINT, SIGTERM and SIGHUP interrupt it, finalizers included,
 * and give 130, 143 and 129. NodeRuntime.runMain knows neither SIGHUP nor 143, and reports on stdout.
 */
export const runRole = (role: Effect.Effect<number>): void => {
  let signal: (typeof signals)[number] | undefined;
  const main = Runtime.makeRunMain(({ fiber, teardown }) => {
    for (const name of signals) {
      process.on(name, () => {
        signal ??= name;
        fiber.interruptUnsafe(fiber.id);
      });
    }
    fiber.addObserver((exit) => teardown(exit, (code) => process.exit(code)));
  });
  main(role, {
    disableErrorReporting: true,
    teardown: (exit, onExit) => {
      if (signal !== undefined && (Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause))) {
        return onExit(128 + constants.signals[signal]);
      }
      if (Exit.isSuccess(exit)) return onExit(exit.value as number);
      writeSync(2, `a bug: ${Cause.pretty(exit.cause)}\n`);
      onExit(1);
    },
  });
};
