/** Text of many lines, read as it comes: tables and recipes are too long to be held as one string. */

/**
 * Takes bytes in pieces of any size and gives each line, without its newline, to `see`. A line of more
 * than `limit` bytes (newline included), or that is no printable ASCII, ends it: then, and from then
 * on, `push` gives false.
 */
export const textLines = (limit: number, see: (line: string) => boolean) => {
  let held = "";
  let sound = true;
  return {
    push: (bytes: Uint8Array): boolean => {
      let at = 0;
      const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      while (sound && at < text.length) {
        const end = text.indexOf(0x0a, at);
        const upTo = end === -1 ? text.length : end;
        if (held.length + upTo - at >= limit) sound = false;
        else held += text.toString("latin1", at, upTo);
        at = upTo + 1;
        if (!sound || end === -1) continue;
        sound = /^[\x20-\x7e]+$/.test(held) && see(held);
        held = "";
      }
      return sound;
    },
    /** True when everything was sound, and the last line complete. */
    finish: (): boolean => sound && held === "",
  };
};
