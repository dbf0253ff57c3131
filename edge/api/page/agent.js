// The agent behind this page: what it is asked, and the answer as a stream of events.

const GONE = "the agent does not answer; is it still running?";

export class Refused extends Error {}

// Ask at once, and yield what happens: one object with one key an event. Throws Refused; AbortError where `signal` aborts.
export function ask(request, signal) {
  return told(reach("v1/chat/completions", { method: "POST", body: request, signal }));
}

async function* told(response) {
  let complete = false;
  for await (const data of lines((await response).body)) {
    if (data === "[DONE]") return;
    const chunk = read(data);
    if (chunk.error) throw new Refused(chunk.error.message);
    if (!chunk.cutline) continue;
    for (const [name, what] of Object.entries(chunk.cutline)) yield { [name]: what };
    complete ||= "answer" in chunk.cutline;
  }
  if (!complete) throw new Refused("the agent broke off in the middle of the answer; ask again");
}

export const state = async () => (await reach("cutline/state")).json();

export const goOffline = async (offline) => (await reach("cutline/state", { method: "POST", body: { offline } })).json();

async function reach(path, { method = "GET", body, signal } = {}) {
  let response;
  try {
    const headers = body === undefined ? {} : { "content-type": "application/json" };
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(GONE);
  }
  if (response.ok) return response;
  if (response.status === 401) throw new Refused("this browser is not logged in any more; load the page again to log in");
  const fault = await response.json().catch(() => ({}));
  throw new Refused(fault.error?.message ?? `the agent refused with status ${response.status}`);
}

function read(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Refused("the agent sent something that does not read; is another server at this address?");
  }
}

// The data of each server-sent event.
export async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new Refused(GONE);
      });
      if (done) return;
      const parts = (rest + value).split(/\r?\n/);
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data:")) yield part.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {}); // the stream may have failed, which was said above
  }
}
