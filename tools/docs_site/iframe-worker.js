// Browsers start no worker from a file. So the search of pages that are opened as files runs in a hidden frame, which
// answers as a worker would. Served pages keep their worker.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      window.addEventListener("message", (event) => {
        if (event.source === frame.contentWindow) this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      this.ready = new Promise((resolve) => frame.addEventListener("load", resolve));
      frame.srcdoc =
        "<script>postMessage = parent.postMessage.bind(parent); importScripts = async (...urls) => { for (const url of" +
        " urls) await new Promise((done) => { const script = document.createElement('script'); script.src = url;" +
        ` script.onload = done; document.body.append(script); }); };<\/script><script src="${new URL(url, location)}"><\/script>`;
      document.documentElement.append(frame);
      this.frame = frame;
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
