/** What `SSH_CONN` may say: where ssh connects to. */
const user = "[A-Za-z0-9_][A-Za-z0-9._-]{0,63}";
/** A host name, an IPv4 address, or a name that ~/.ssh/config gives a meaning to. */
const host = "[A-Za-z0-9_][A-Za-z0-9._-]{0,252}";
const ipv6 = "(?=[0-9A-Fa-f.]*:)[0-9A-Fa-f:.]{2,45}";
const port = "[1-9][0-9]{0,4}";

const plain = new RegExp(`^(?:${user}@)?(?:${host}|${ipv6})$`);
const uri = new RegExp(`^ssh://(?:${user}@)?(?:${host}|\\[${ipv6}\\])(?::${port})?$`);

/**
 * `[user@]host` or `ssh://[user@]host[:port]`. No first character that ssh could take for an option,
 * and none at all that a shell or a `%` token of ssh's configuration (ProxyCommand, Match exec) gives
 * a meaning to.
 */
export const isDestination = (text: string): boolean => plain.test(text) || uri.test(text);
