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
  /** Asked before each call: "before" and "after" say when, with regard to it, the process dies. */
  readonly doom: (life: Life, what: string) => "before" | "after" | undefined;
  /** Told when it dies through `doom`. */
  readonly dies: (life: Life) => void;
  constructor(
    name: string,
    doom: (life: Life, what: string) => "before" | "after" | undefined = () => undefined,
    dies: (life: Life) => void = () => {},
  ) {
    this.name = name;
    this.doom = doom;
    this.dies = dies;
  }
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
      let doomed: "before" | "after" | undefined;
      if (what !== undefined) {
        life.steps += 1;
        doomed = life.doom(life, what);
      }
      if (doomed === "before") {
        life.dead = true;
        life.dies(life);
        return gone;
      }
      return Effect.flatMap(effect, (value) => {
        if (doomed === "after" && !life.dead) {
          life.dead = true;
          life.dies(life);
        }
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
