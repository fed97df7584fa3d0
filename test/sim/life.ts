/**
 * A process that can die at once. Interrupting a fiber runs its finalizers, and a killed process has
 * none: so everything that the program asks of the world goes through a gate, and behind a dead
 * process the gate is shut. What then still runs in it has no effect on anything.
 */
import { Effect } from "effect";

export class Life {
  dead = false;
  /** Calls on the world so far. */
  steps = 0;
  readonly name: string;
  /** Asked before each call. */
  readonly doom: (life: Life, what: string) => Doom | undefined;
  constructor(name: string, doom: (life: Life, what: string) => Doom | undefined) {
    this.name = name;
    this.doom = doom;
  }
}

/** Says that a process dies with a call, before or after it took effect. */
export interface Doom {
  readonly moment: "before" | "after";
  /** What else happens then. */
  readonly dies: () => void;
}

const originals = new WeakMap<object, object>();
const original = (value: unknown): unknown =>
  (typeof value === "object" && value !== null && originals.get(value)) || value;

const isService = (value: unknown): value is object =>
  typeof value === "object" &&
  value !== null &&
  Object.getPrototypeOf(value) === Object.prototype &&
  Object.values(value).some((member) => typeof member === "function" || Effect.isEffect(member));

/** `service`, as long as the process lives; what it gives (a file, a call) is gated too. */
export const gated = <A extends object>(
  life: Life,
  service: A,
  /** Names a call that counts as a step; undefined for one that does not. */
  step: (member: string) => string | undefined = () => undefined,
): A => {
  const gone = Effect.die(`${life.name} is dead`);
  const guard = (what: string | undefined, effect: Effect.Effect<unknown, unknown, unknown>) =>
    Effect.suspend(() => {
      if (life.dead) return gone;
      let doom: Doom | undefined;
      if (what !== undefined) {
        life.steps += 1;
        doom = life.doom(life, what);
      }
      const die = Effect.sync(() => {
        if (doom === undefined || life.dead) return;
        life.dead = true;
        doom.dies();
      });
      if (doom?.moment === "before") return Effect.andThen(die, gone);
      const done = doom === undefined ? effect : Effect.ensuring(effect, die);
      return Effect.flatMap(done, (value) => {
        if (life.dead) return gone;
        return Effect.succeed(isService(value) ? gated(life, value, step) : value);
      });
    });
  const proxy = new Proxy(service, {
    get: (target, key) => {
      const member: unknown = Reflect.get(target, key);
      const what = typeof key === "string" ? step(key) : undefined;
      if (Effect.isEffect(member)) return guard(what, member);
      if (typeof member !== "function") return member;
      return (...args: ReadonlyArray<unknown>) => {
        const result: unknown = Reflect.apply(member, target, args.map(original));
        return Effect.isEffect(result) ? guard(what, result) : result;
      };
    },
  });
  originals.set(proxy, service);
  return proxy;
};
