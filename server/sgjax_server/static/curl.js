// A request as a line for the shell.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** The key itself is never copied, only where the shell finds one. */
export function curl(path, body, { withKey }) {
  const lines = [`curl ${location.origin}${path}`, "-H 'Content-Type: application/json'"];
  if (withKey) lines.push('-H "Authorization: Bearer $SGJAX_API_KEY"');
  lines.push(`-d ${quoted(JSON.stringify(body))}`);
  return lines.join(" \\\n  ");
}
