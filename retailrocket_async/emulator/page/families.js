// Families of event types: the types of one family have one colour.

/** @type {Record<string, string>} */
const FAMILIES = {
  view: "browse", categoryView: "browse", groupView: "browse", search: "browse",
  addToBasket: "basket", recomAddToBasket: "basket", order: "order",
  recomTap: "recom", recomBlockViewed: "recom", impressionContentClicked: "recom", impressionContentViewed: "recom",
  setContact: "contact",
};

/**
 * Return the family of an event type, undefined for a type that the API does not know.
 *
 * @param {string} type
 */
export function familyOf(type) {
  return Object.hasOwn(FAMILIES, type) ? FAMILIES[type] : undefined;
}
