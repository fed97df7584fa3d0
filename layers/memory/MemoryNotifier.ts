/** Keeps the notifications, for tests. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { Notifier } from "#services/Notifier";

export interface Notification {
  readonly urgency: "low" | "normal" | "critical";
  readonly summary: string;
  readonly body: string;
}

export const memoryNotifier = (shown: Array<Notification> = []): Layer.Layer<Notifier> =>
  Layer.succeed(Notifier, {
    notify: (urgency, summary, body) =>
      Effect.sync(() => void shown.push({ urgency, summary, body })),
  });
