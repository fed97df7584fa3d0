/** Desktop notifications. They never fail a run, and never carry a word that came from elsewhere. */
import { Context, type Effect } from "effect";

export class Notifier extends Context.Service<
  Notifier,
  {
    readonly notify: (
      urgency: "low" | "normal" | "critical",
      summary: string,
      body: string,
    ) => Effect.Effect<void>;
  }
>()("qbackup/services/Notifier") {}
