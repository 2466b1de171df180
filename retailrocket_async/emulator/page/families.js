// Families of event types. The page shows all types of a family in one colour.

/** @type {Record<string, string>} */
const FAMILIES = {
  view: "browse", categoryView: "browse", groupView: "browse", search: "browse",
  categoryViewByCategoryPath: "browse",
  addToBasket: "basket", recomAddToBasket: "basket", order: "order",
  recomTap: "recom", recomBlockViewed: "recom", impressionContentClicked: "recom", impressionContentViewed: "recom",
  setContact: "contact", emailClick: "contact", welcomeSequence: "contact",
};

/**
 * Return the family of an event type, or undefined if the API does not document the type.
 *
 * @param {string} type
 */
export function familyOf(type) {
  return Object.hasOwn(FAMILIES, type) ? FAMILIES[type] : undefined;
}
