// Addresses are fragments (#/models/resnet): no server has to know them, and none ever sees them.
import { useEffect, useState } from "./html.js";

export function parse(hash) {
  const [route, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = route.split("/").filter(Boolean).map(decode);
  return { parts, query: new URLSearchParams(query) };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function link(...parts) {
  return "#/" + parts.map((part) => encodeURIComponent(part)).join("/");
}

export function go(...parts) {
  location.hash = link(...parts);
}

export function useRoute() {
  const [route, setRoute] = useState(() => parse(location.hash));
  useEffect(() => {
    const update = () => setRoute(parse(location.hash));
    addEventListener("hashchange", update);
    return () => removeEventListener("hashchange", update);
  }, []);
  return route;
}
