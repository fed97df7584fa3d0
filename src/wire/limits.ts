/** The limits of the wire, all of them; docs/protocol.md, Limits, says the same. Sizes in bytes. */

/** Of a request or a reply, its newline included. */
export const lineLimit = 4096;
/** Of every block of a member but its last: of a frame, of a leaf of the tree hash. */
export const blockSize = 1_048_576;
/** Lines and bytes that login shells may print before the first reply. */
export const preambleLimit = { lines: 64, bytes: 16_384 } as const;
/** Frames that a block and its proof make at most: 2^53 bytes are 2^33 blocks. */
export const proofLimit = 33 * 32;

/** Seconds of silence after which each side says that it is there. */
export const aliveAfter = 15;
/** Signs of life, beside one a second, that a reader takes: more than come in a day. */
export const aliveMost = 10_000;
/** Seconds of silence after which the link is broken, for both sides. */
export const silenceLimit = 60;
/** The floor of a stream: so many bytes in so many seconds while bytes wait. */
export const floor = { bytes: 8192 * 3600, seconds: 3600 } as const;

/** Durable bytes, and seconds, after which the server acknowledges at the latest. */
export const ackAfter = { bytes: 8 * blockSize, seconds: 2 } as const;

/** Archives that one `list` says at most. */
export const listPage = 10_000;
/** Signers that a store has at most. */
export const signerLimit = 16;
/** Lines of `read` that may be unanswered. */
export const unansweredLimit = 16;
/** Uploads of one store at once. */
export const uploadLimit = 4;

/** Days that a ticket's time may lie back, and hours that it may be ahead. */
export const ticketAge = { days: 30, hours: 24 } as const;
