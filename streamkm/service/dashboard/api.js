// What the page asks of the service: requests with the token of this tab, and a stream that comes back after a loss.

const KEY = "streamkm-token";

export const token = () => sessionStorage.getItem(KEY) || "";
export const setToken = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));

function headers(more = {}) {
  return token() ? { Authorization: `Bearer ${token()}`, ...more } : more;
}

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.hint ? `${problem.detail}. ${problem.hint}` : problem.detail);
    this.status = status;
    this.problem = problem;
  }
}

async function refused(answer) {
  const text = await answer.text();
  let problem = { detail: `${answer.status} ${answer.statusText}` };
  try { problem = JSON.parse(text); } catch { /* not ours: a proxy's page says nothing more */ }
  return new Refused(answer.status, problem);
}

export async function ask(path, { method = "GET", body } = {}) {
  const more = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await fetch(path, { method, headers: headers(more), body: body === undefined ? undefined : JSON.stringify(body) });
  if (!answer.ok) throw await refused(answer);
  return answer.status === 204 ? null : answer.json();
}

// EventSource cannot send a token, so the stream is read by fetch.
export function listen(path, { onEvent, onOpen, onLost }) {
  const leaving = new AbortController();
  (async () => {
    for (let pause = 500; !leaving.signal.aborted; pause = Math.min(2 * pause, 10000)) {
      try {
        const answer = await fetch(path, { headers: headers({ Accept: "text/event-stream" }), signal: leaving.signal });
        if (!answer.ok) throw await refused(answer);
        onOpen();
        pause = 500;
        await read(answer.body.pipeThrough(new TextDecoderStream()).getReader(), onEvent);
        throw new Error("the service ended the stream");
      } catch (error) {
        if (leaving.signal.aborted) return;
        onLost(error);
        if (error.status === 401 || error.status === 403) return; // until somebody signs in
      }
      await new Promise((done) => setTimeout(done, pause));
    }
  })();
  return () => leaving.abort();
}

async function read(reader, onEvent) {
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const message = { event: "message", data: "" };
      for (const line of rest.slice(0, end).split("\n")) {
        const colon = line.indexOf(":");
        if (colon <= 0) continue; // a comment
        const name = line.slice(0, colon), text = line.slice(colon + 1).replace(/^ /, "");
        message[name] = name === "data" && message.data ? `${message.data}\n${text}` : text;
      }
      rest = rest.slice(end + 2);
      if (message.data) onEvent(message.event, JSON.parse(message.data));
    }
  }
}
