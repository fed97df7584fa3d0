/** Removes uploads that nobody came back for, and what they leave: told of for long, kept for a while. */
import { Clock, Effect } from "effect";
import { Locks } from "#services/Locks";
import type { SafeFsError } from "#services/SafeFs";
import { MemberWalk } from "#src/archive/walk";
import type { PublicKey, Series } from "#src/wire/names";
import { settledOf, settle } from "./commit.ts";
import { find, whereFound, type WritableStore } from "./store.ts";
import { ticketOf } from "./tickets.ts";
import { discard } from "./upload.ts";

const hour = 60 * 60 * 1000;
const day = 24 * hour;
/** A stream of qvm-backup's cannot be made again: only a link that broke goes on with it. */
const streamKept = day;
/** Slots go on with it in each later run, so this counts from the last ticket. */
const slotsKept = 30 * day;
/** How long is told why an upload is no more. */
const goneKept = 400 * day;
/** Uploads, and notes of such, that one run removes at most. */
const most = 256;

/** A file of an upload, or of an identity that was never linked. */
const leftover = /^([0-9a-f]{32})(?:\.[a-z.]+)?$/;
