// Requests with the token of this tab, and an event stream that reconnects.

const KEY = "streamkm-token";

export const token = () => sessionStorage.getItem(KEY) || "";
export const setToken = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));

function headers(extra = {}) {
  return token() ? { Authorization: `Bearer ${token()}`, ...extra } : extra;
}

export class RequestError extends Error {
  constructor(status, problem) {
    super(problem.hint ? `${problem.detail}. ${problem.hint}` : problem.detail);
    this.status = status;
    this.problem = problem;
  }
}

async function errorOf(response) {
  const text = await response.text();
  let problem = { detail: `${response.status} ${response.statusText}` };
  try { problem = JSON.parse(text); } catch { /* not a problem of the service, such as the page of a proxy */ }
  return new RequestError(response.status, problem);
}

export async function request(path, { method = "GET", body } = {}) {
  const extra = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(path, { method, headers: headers(extra), body: body === undefined ? undefined : JSON.stringify(body) });
  if (!response.ok) throw await errorOf(response);
  return response.status === 204 ? null : response.json();
}

// EventSource cannot send a token, so the stream is read with fetch.
export function openStream(path, { onEvent, onOpen, onLost }) {
  const aborter = new AbortController();
  (async () => {
    for (let delay = 500; !aborter.signal.aborted; delay = Math.min(2 * delay, 10000)) {
      try {
        const response = await fetch(path, { headers: headers({ Accept: "text/event-stream" }), signal: aborter.signal });
        if (!response.ok) throw await errorOf(response);
        onOpen();
        delay = 500;
        await read(response.body.pipeThrough(new TextDecoderStream()).getReader(), onEvent);
        throw new Error("the service ended the stream");
      } catch (error) {
        if (aborter.signal.aborted) return;
        onLost(error);
        if (error.status === 401 || error.status === 403) return; // until the user signs in
      }
      await new Promise((done) => setTimeout(done, delay));
    }
  })();
  return () => aborter.abort();
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
