"""What the synthetic pet shop sells: pets, invented brands and kinds of products, with the words that describe them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

MEAT = "Chicken & Brown Rice|Grain-Free Salmon|Lamb & Barley|Turkey & Sweet Potato|Beef & Garden Pea|Duck & Pumpkin"
CATCH = "Grain-Free Salmon|Chicken & Pumpkin|Tuna & Shrimp|Turkey & Cranberry|Whitefish & Rice|Duck & Pea"
COLOR = "Slate Gray|Cherry Red|Forest Green|Navy Blue|Sandstone|Plum|Teal|Mustard Yellow"
SCENT = "Lavender|Fresh Linen|Green Tea|Vanilla|Unscented|Cucumber Melon"
TANK = "Rimless Glass|Bow-Front|Panorama|Cube|Low-Iron|Starter"
WATER = "Tropical|Goldfish|Betta|Guppy|Cichlid"
FLOCK = "Parakeet|Cockatiel|Finch & Canary|Parrot|Lovebird"
HERD = "Guinea Pig|Rabbit|Hamster|Gerbil & Mouse|Chinchilla"
WOOD = "Birch|Aspen|Applewood|Pine|Bamboo|Willow"


class Kind(NamedTuple):
    """One kind of product. `{}` in noun and text takes the style; follows: kind -> weight of buying it next."""

    pet: str
    noun: str
    path: str
    styles: str
    sizes: str
    price: tuple[float, float]  # US dollars of the smallest and of the largest size
    weight: float  # popularity in `taste`
    variants: int  # items of this kind per brand
    consumable: bool
    text: str
    follows: Mapping[str, float] = MappingProxyType({})


KINDS = {
    "puppy": Kind("dog", "{} Dry Puppy Food", "Food > Puppy Food", MEAT, "5 lb|15 lb|28 lb", (13, 49), 5, 1, True,
                  "A {} recipe in small kibble, with DHA for growing puppies.", {"adult": 8, "collar": 2, "treat": 2}),
    "adult": Kind("dog", "{} Dry Dog Food", "Food > Dry Food", MEAT, "6 lb|15 lb|30 lb", (14, 58), 6, 2, True,
                  "A complete {} recipe for adult dogs of every breed.", {"treat": 4, "can": 3}),
    "can": Kind("dog", "{} Canned Dog Food", "Food > Wet Food", MEAT, "Case of 6|Case of 12", (14, 31), 3, 1, True,
                "Slow-cooked {} stew, good alone or over kibble."),
    "treat": Kind("dog", "{} Training Treats", "Treats > Training Treats", MEAT, "6 oz|16 oz", (6, 14), 3, 1, True,
                  "Soft bites with {}, three calories each, for long training sessions."),
    "collar": Kind("dog", "Nylon Dog Collar in {}", "Walking > Collars", COLOR, "Small|Medium|Large", (9, 15), 4, 1,
                   False, "A {} collar with a quick-release buckle and a welded D-ring.", {"leash": 8, "tag": 3}),
    "leash": Kind("dog", "Padded Dog Leash in {}", "Walking > Leashes", COLOR, "4 ft|6 ft", (12, 17), 1, 1, False,
                  "A {} leash with a padded handle and reflective stitching.", {"bags": 8, "tag": 2}),
    "tag": Kind("dog", "Engraved ID Tag in {}", "Walking > ID Tags", COLOR, "Small|Large", (6, 9), 0.5, 1, False,
                "A {} tag with four lines of engraving for name and phone number."),
    "bags": Kind("dog", "{} Dog Waste Bags", "Cleaning > Waste Bags", SCENT, "120 Count|270 Count", (8, 16), 3, 1, True,
                 "Thick leak-proof bags on rolls that fit every dispenser.", {"shampoo": 1}),
    "crate": Kind("dog", "Folding Dog Crate with {} Trim", "Home > Crates", COLOR, "24 in|36 in|42 in", (39, 99), 3, 1,
                  False, "A double-door wire crate that folds flat for travel.", {"mat": 8, "toy": 3}),
    "mat": Kind("dog", "Quilted Crate Mat in {}", "Home > Crate Mats", COLOR, "24 in|36 in|42 in", (15, 34), 0.5, 1,
                False, "A washable {} mat cut to fit standard wire crates.", {"toy": 4, "bed": 2}),
    "bed": Kind("dog", "Memory Foam Dog Bed in {}", "Home > Beds", COLOR, "Medium|Large|X-Large", (42, 96), 2, 1, False,
                "Four inches of foam under a removable {} cover.", {"toy": 3, "shampoo": 2}),
    "toy": Kind("dog", "Braided Rope Toy in {}", "Toys > Rope Toys", COLOR, "Small|Large", (7, 13), 1, 1, False,
                "Tight cotton braids that clean teeth during tug-of-war.", {"treat": 4}),
    "shampoo": Kind("dog", "{} Dog Shampoo", "Grooming > Shampoo", SCENT, "12 fl oz|20 fl oz", (8, 15), 2, 1, True,
                    "A soap-free shampoo for sensitive skin that rinses out quickly.", {"brush": 8}),
    "brush": Kind("dog", "Slicker Brush with {} Handle", "Grooming > Brushes", COLOR, "Small|Large", (9, 14), 0.5, 1,
                  False, "Fine bent wires lift loose undercoat without scratching."),
    "kitten": Kind("cat", "{} Dry Kitten Food", "Food > Kitten Food", CATCH, "3 lb|7 lb|12 lb", (12, 37), 5, 1, True,
                   "A protein-rich {} recipe for kittens up to one year.", {"dry": 8, "box": 3}),
    "dry": Kind("cat", "{} Dry Cat Food", "Food > Dry Food", CATCH, "5 lb|7 lb|12 lb", (15, 42), 6, 2, True,
                "A complete {} recipe with taurine for adult cats.", {"wet": 4, "crunch": 3}),
    "wet": Kind("cat", "{} Pate Wet Cat Food", "Food > Wet Food", CATCH, "Case of 12|Case of 24", (15, 29), 4, 1, True,
                "Smooth pate with {} in pull-tab cans, without artificial colors."),
    "crunch": Kind("cat", "{} Crunchy Cat Treats", "Treats > Crunchy", CATCH, "2.5 oz|6 oz", (3, 7), 3, 1, True,
                   "Two-calorie treats with {} that help to reduce tartar."),
    "box": Kind("cat", "Covered Litter Box in {}", "Litter > Litter Boxes", COLOR, "Medium|Large", (24, 39), 4, 1,
                False, "A hooded box with a carbon filter and a swing door.", {"litter": 9, "scoop": 3}),
    "litter": Kind("cat", "{} Clumping Cat Litter", "Litter > Clay Litter", SCENT, "14 lb|25 lb|40 lb", (9, 24), 5, 1,
                   True, "Low-dust clay that clumps hard and locks in odor.", {"scoop": 5, "liner": 4}),
    "scoop": Kind("cat", "Litter Scoop in {}", "Litter > Scoops", COLOR, "Standard|Deep", (6, 10), 0.5, 1, False,
                  "A deep-slotted {} scoop with a long handle and a wall hook."),
    "liner": Kind("cat", "{} Litter Box Liners", "Litter > Liners", SCENT, "10 Count|30 Count", (5, 11), 1, 1, True,
                  "Drawstring liners of tear-resistant film for boxes up to 22 inches."),
    "fountain": Kind("cat", "Ceramic Cat Fountain in {}", "Feeding > Fountains", COLOR, "60 oz|80 oz", (29, 46), 3, 1,
                     False, "A quiet pump keeps water moving, so that cats drink more.", {"pads": 9, "dry": 1}),
    "pads": Kind("cat", "{} Fountain Filter Refills", "Feeding > Fountain Filters", "Carbon|Triple-Layer|Foam",
                    "4 Pack|8 Pack", (8, 14), 1, 1, True, "{} refills that catch hair; change every four weeks."),
    "post": Kind("cat", "Sisal Scratching Post in {}", "Home > Scratchers", COLOR, "26 in|34 in", (22, 45), 3, 1, False,
                 "Woven sisal on a heavy {} base that does not tip.", {"catnip": 6, "wand": 4}),
    "catnip": Kind("cat", "Organic Catnip, {} Blend", "Toys > Catnip", "Wild Mint|Silver Vine|Valerian|Classic",
                   "1 oz|2 oz", (5, 9), 2, 1, True, "Leaf and flower tops, dried slowly and packed in a tin."),
    "wand": Kind("cat", "Feather Wand in {}", "Toys > Wands", COLOR, "1 Pack|2 Pack", (6, 11), 1, 1, False,
                 "A flexible {} wand with two feather lures.", {"crunch": 4}),
    "aquarium": Kind("fish", "{} Aquarium", "Aquariums", TANK, "5 gal|10 gal|20 gal", (39, 139), 5, 2, False,
                     "A clear tank with polished edges and a fitted lid.", {"filter": 8, "heater": 4, "gravel": 3}),
    "filter": Kind("fish", "Quiet Power Filter for {} Tanks", "Filters > Power Filters", TANK, "10 gal|20 gal",
                   (17, 32), 2, 1, False, "Three-stage filtration with an adjustable flow.", {"cartridge": 9}),
    "cartridge": Kind("fish", "Filter Cartridges for {} Tanks", "Filters > Cartridges", TANK, "3 Pack|6 Pack|12 Pack",
                      (7, 21), 3, 1, True, "Carbon cartridges that keep water clear for a month each."),
    "heater": Kind("fish", "Submersible Heater for {} Tanks", "Heaters", TANK, "50 W|100 W", (16, 28), 1, 1, False,
                   "A shatterproof heater with automatic shut-off.", {"thermo": 6, "flakes": 2}),
    "thermo": Kind("fish", "Digital Thermometer for {} Tanks", "Heaters > Thermometers", TANK, "1 Pack|2 Pack",
                   (6, 10), 0.5, 1, False, "Reads to a tenth of a degree and sticks to the glass."),
    "gravel": Kind("fish", "{} Aquarium Gravel", "Decor > Gravel", COLOR, "5 lb|20 lb", (7, 19), 2, 1, False,
                   "Rounded {} gravel with a coating that is safe for fish.", {"plant": 6, "vacuum": 4}),
    "plant": Kind("fish", "Silk Plants with {} Base", "Decor > Plants", COLOR, "3 Pack|6 Pack", (8, 15), 1, 1, False,
                  "Soft leaves that never tear a fin."),
    "vacuum": Kind("fish", "{} Gravel Vacuum", "Cleaning > Vacuums", "Siphon|Slim|Pump-Start", "Small|Large", (9, 16),
                   1, 1, False,  "Starts with one shake, for weekly water changes.", {"conditioner": 6}),
    "flakes": Kind("fish", "{} Flake Food", "Food > Flakes", WATER, "1 oz|3.5 oz|7 oz", (4, 15), 5, 2, True,
                   "Daily flakes with garlic and spirulina that do not cloud the water.", {"wafers": 3}),
    "wafers": Kind("fish", "{} Sinking Wafers", "Food > Wafers", WATER, "2 oz|5 oz", (5, 11), 2, 1, True,
                   "Slow-sinking wafers for shy and bottom-feeding fish."),
    "conditioner": Kind("fish", "{} Water Conditioner", "Water Care", WATER, "4 fl oz|16 fl oz", (5, 13), 3, 1, True,
                        "Removes chlorine in minutes and protects the slime coat.", {"strips": 5}),
    "strips": Kind("fish", "{} Test Strips", "Water Care > Test Kits", WATER, "25 Count|100 Count", (9, 19), 1, 1, True,
                   "Six readings in one minute, with a color chart on the tube."),
    "cage": Kind("bird", "{} Cage", "Cages", FLOCK, "18 in|24 in|30 in", (49, 149), 4, 2, False,
                 "A powder-coated cage with a slide-out tray.", {"perch": 6, "paper": 4, "swing": 3}),
    "perch": Kind("bird", "{} Perch", "Cage Accessories > Perches", WOOD, "8 in|12 in", (6, 12), 1, 1, False,
                  "A branch of varied width that exercises feet.", {"swing": 4, "cuttle": 3}),
    "swing": Kind("bird", "{} Swing", "Toys > Swings", WOOD, "Small|Large", (7, 13), 1, 1, False,
                  "A hand-tied swing with beads and a bell.", {"millet": 4, "shred": 4}),
    "shred": Kind("bird", "Shredding Toy with {}", "Toys > Foraging", WOOD, "Small|Large", (8, 14), 1, 1, False,
                  "Paper, palm and wood to pull apart, dyed with vegetable colors."),
    "paper": Kind("bird", "{} Cage Liners", "Cleaning > Cage Liners", FLOCK, "50 Count|100 Count", (8, 14), 2, 1, True,
                  "Absorbent precut paper that makes cleaning a minute's work."),
    "seed": Kind("bird", "{} Seed Mix", "Food > Seed", FLOCK, "2 lb|5 lb|10 lb", (6, 22), 6, 2, True,
                 "Cleaned seed with fruit and added vitamins.", {"millet": 4, "cuttle": 3}),
    "pellet": Kind("bird", "{} Pellets", "Food > Pellets", FLOCK, "2 lb|4 lb", (10, 19), 3, 1, True,
                   "A balanced pellet, so that nothing is picked out and wasted.", {"millet": 3}),
    "millet": Kind("bird", "{} Millet Sprays", "Treats > Millet", FLOCK, "6 Count|12 Count", (5, 10), 2, 1, True,
                   "Sun-dried sprays to hang in the cage."),
    "cuttle": Kind("bird", "{} Cuttlebone", "Health > Cuttlebones", FLOCK, "2 Pack|6 Pack", (4, 9), 1, 1, True,
                   "Natural calcium that keeps beaks trim."),
    "hutch": Kind("small", "{} Habitat", "Habitats", HERD, "28 in|36 in|47 in", (42, 129), 4, 2, False,
                  "Two levels, wide doors and a deep leak-proof base.", {"bedding": 7, "bottle": 4, "hide": 3}),
    "bedding": Kind("small", "{} Bedding", "Bedding", WOOD, "10 L|30 L|60 L", (7, 24), 5, 1, True,
                    "Fluffy low-dust bedding that holds three times its weight in liquid.", {"hide": 2}),
    "bottle": Kind("small", "{} Water Bottle", "Feeding > Bottles", HERD, "8 oz|32 oz", (6, 12), 1, 1, False,
                   "A no-drip spout with a spring hanger.", {"feed": 4, "bowl": 3}),
    "bowl": Kind("small", "Stoneware Bowl in {}", "Feeding > Bowls", COLOR, "3 in|5 in", (5, 9), 1, 1, False,
                 "A {} bowl, too heavy to tip over.", {"feed": 4}),
    "feed": Kind("small", "{} Food", "Food > Pellets", HERD, "2 lb|5 lb|10 lb", (6, 23), 6, 2, True,
                 "Fortified timothy pellets without seeds or added sugar.", {"hay": 6}),
    "hay": Kind("small", "{} Timothy Hay", "Food > Hay", HERD, "24 oz|90 oz", (8, 23), 4, 1, True,
                "Second-cut hay, long and green, packed by hand.", {"rack": 4, "sticks": 3}),
    "rack": Kind("small", "Hay Rack in {}", "Feeding > Hay Racks", WOOD, "Small|Large", (9, 15), 0.5, 1, False,
                 "Keeps hay off the floor and within reach."),
    "sticks": Kind("small", "{} Chew Sticks", "Toys > Chews", WOOD, "10 Count|30 Count", (5, 10), 2, 1, True,
                   "Untreated wood that wears down growing teeth."),
    "hide": Kind("small", "{} Hideaway", "Habitats > Hideaways", WOOD, "Small|Large", (11, 22), 1, 1, False,
                 "A quiet place to nap, safe to chew.", {"tunnel": 4, "sticks": 3}),
    "tunnel": Kind("small", "Play Tunnel in {}", "Toys > Tunnels", COLOR, "Small|Large", (9, 16), 1, 1, False,
                   "A crinkling {} tunnel that folds flat."),
}
PREVIEW = Kind("", "Pet Club Preview Box for {}", "Gift Boxes", "", "Fall 2019", (29, 29), 7, 1, False,
               "Samples of what arrives next season; members may order it before everyone else.")
ARRIVALS = {
    "dog": Kind("dog", "Air-Dried {} Topper for Dogs", "Food > Toppers", MEAT, "7 oz|14 oz", (12, 22), 45, 1, False,
                "New this season: gently dried {} to crumble over kibble."),
    "cat": Kind("cat", "Freeze-Dried {} Topper for Cats", "Food > Toppers", CATCH, "3 oz|6 oz", (9, 17), 45, 1, False,
                "New this season: small freeze-dried pieces of {}."),
    "fish": Kind("fish", "Wi-Fi {} Tank Feeder", "Feeding > Feeders", WATER, "1 Chamber|2 Chamber", (34, 48), 45, 1,
                 False, "New this season: feeds on schedule and reports to a phone."),
    "bird": Kind("bird", "{} Foraging Wheel", "Toys > Foraging", FLOCK, "Small|Large", (16, 24), 45, 1, False,
                 "New this season: a wheel of little drawers that hide treats."),
    "small": Kind("small", "{} Warming Pad", "Habitats > Heating", HERD, "Small|Large", (19, 27), 45, 1, False,
                  "New this season: a chew-proof pad that holds 95 degrees."),
}
PETS = {"dog": ("Dogs", 0.33), "cat": ("Cats", 0.29), "fish": ("Fish", 0.14), "bird": ("Birds", 0.11),
        "small": ("Small Animals", 0.13)}  # shelf, share of users
BRANDS = {  # what the brand sells for, its line in descriptions; a pet's brands are listed by falling popularity
    "Blue Harbor": ("dog cat", "From a family shop on the coast of Maine."),
    "Copper Kennel": ("dog", "Tested by the sled dogs of our own kennel."),
    "Whiskerly": ("cat", "Designed with two vets and eleven cats."),
    "Old Mill Pantry": ("dog cat small", "A family business since 1931."),
    "Clearbrook": ("fish", "Trusted by public aquariums in nine states."),
    "Songbarn": ("bird", "From a bird farm in the Willamette Valley."),
    "Burrow & Bale": ("small", "From a rabbit rescue farm in Idaho."),
    "Tailwind Farms": ("dog", "No fillers, no shortcuts."),
    "Velvet Alley": ("cat", "A part of every sale goes to city shelters."),
    "Reefline": ("fish", "If your fish disagree, we refund it."),
    "Perch & Plume": ("bird", "Made in Vermont by people who keep parrots."),
    "Thistledown": ("small", "Gentle on little lungs and paws."),
    "Northpaw": ("dog cat", "From Minnesota, where winters are long."),
    "Tidewell": ("fish", "Simple enough for a first tank."),
    "Feather Lane": ("bird", "Recommended by avian vets."),
    "Meadowkin": ("bird small", "Made within forty miles of our barn."),
    "Trailmutt": ("dog", "For dogs that like mud, rain and river crossings."),
    "Purrington": ("cat", "For cats of taste."),
    "Lagoona": ("fish", "Brightens every tank."),
    "Sunny Aviary": ("bird", "Safe for beaks, claws and curious minds."),
    "Little Warren": ("small", "Sized for small pets and small apartments."),
    "Juniper Row": ("dog cat", "Carbon-neutral since 2012."),
    "Brambleback": ("dog", "Honest goods at a fair price."),
    "Quiet Tabby": ("cat", "Unfussy, like its name."),
    "Stillwater Lane": ("fish", "Made for calm, planted tanks."),
}
