// The camera: what it sees now, and a picture of it.

import { find } from "./dom.js";
import { redraw } from "./pictures.js";

// Browsers give the camera to pages from this machine or over TLS alone.
export const canSee = () => Boolean(navigator.mediaDevices?.getUserMedia);

// Show what the camera sees. Resolves to a JPEG file, or null if nothing was taken.
export async function takePicture() {
  const dialog = find("camera");
  const [video, trouble] = [dialog.querySelector("video"), dialog.querySelector(".trouble")];
  const [take, turn] = [dialog.querySelector("[data-take]"), dialog.querySelector("[data-turn]")];
  let facing = "environment";
  let stream = null;

  function close() {
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = null;
  }

  async function open() {
    close();
    take.disabled = true;
    trouble.hidden = true;
    try {
      const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1920 } } });
      stream = opened;
      if (!dialog.open) return close(); // left while the browser asked
      video.srcObject = stream;
      await video.play();
      take.disabled = false;
      const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput");
      turn.hidden = cameras.length < 2;
    } catch (error) {
      trouble.textContent = error.name === "NotAllowedError" ? "the browser was not allowed to use the camera" : "no camera could be opened";
      trouble.hidden = false;
    }
  }

  dialog.returnValue = "";
  turn.onclick = () => {
    facing = facing === "user" ? "environment" : "user";
    open();
  };
  take.onclick = () => dialog.close("taken");
  dialog.querySelector("[data-leave]").onclick = () => dialog.close("");
  dialog.showModal();
  open();
  return new Promise((resolve) => {
    dialog.onclose = async () => {
      const taken = dialog.returnValue === "taken" ? await redraw(video, video.videoWidth, video.videoHeight) : null;
      close();
      video.srcObject = null;
      resolve(taken && new File([taken], "photo.jpg", { type: "image/jpeg" }));
    };
  });
}
